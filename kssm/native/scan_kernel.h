/* One form of the coupled scan; see forms.h. The equations and their letters stand in kssm/scan.py. */

/* Where things of one sequence lie while it is scanned. Groups are made wide, to whole vectors: m of n oscillators and
   M = G m of N, and the added ones stay 0. Where n is whole already, arrays of the job serve as they are. */
typedef struct {
    const Job *job;
    int64_t m, M;
    float *memory;                                 /* of all that follows */
    float *wide_p, *wide_z, *wide_before, *wide_y; /* [6, M] and three times [2, M] */
    float *d_wide_p, *carry, *d_bank;              /* [6, M], [2, M], [2, M] */
    float *scale, *bias;                           /* [4, M]: of the inputs that sigmoids are taken of */
    float *omega, *inside;                         /* [M]; inside: all ones, or all zeros for an added one */
    float *on, *off;                               /* [4, M]: of a token, sigmoid(x) and sigmoid(-x) of these inputs */
    float *a, *s, *cos, *sin;                      /* [M]: of a token */
    float *k, *kept;                               /* [G and a vector]: of a token, k and 1 - k */
} NAME(Bank);

static void NAME(widen)(const NAME(Bank) *bank, const float *from, int64_t channels, float *to) {
    const Job *job = bank->job;
    for (int64_t i = 0; i < channels * job->G; i++) memcpy(to + i * bank->m, from + i * job->n, (size_t)job->n * 4);
}

static void NAME(narrow)(const NAME(Bank) *bank, const float *from, int64_t channels, float *to) {
    const Job *job = bank->job;
    for (int64_t i = 0; i < channels * job->G; i++) memcpy(to + i * job->n, from + i * bank->m, (size_t)job->n * 4);
}

/* The channels of an array, wide: in its own place, or in the room for a copy. */
static const float *NAME(wide)(const NAME(Bank) *bank, const float *from, int64_t channels, float *room) {
    if (bank->m == bank->job->n) return from;
    NAME(widen)(bank, from, channels, room);
    return room;
}

static int NAME(open)(NAME(Bank) *bank, const Job *job) {
    const int64_t m = (job->n + LANES - 1) / LANES * LANES, M = m * job->G, G = job->G + LANES;
    *bank = (NAME(Bank)){.job = job, .m = m, .M = M};
    const struct {
        float **array;
        int64_t size;
    } rooms[] = {
        {&bank->wide_p, 6 * M}, {&bank->wide_z, 2 * M}, {&bank->wide_before, 2 * M}, {&bank->wide_y, 2 * M},
        {&bank->d_wide_p, 6 * M}, {&bank->carry, 2 * M}, {&bank->d_bank, 2 * M}, {&bank->scale, 4 * M},
        {&bank->bias, 4 * M}, {&bank->omega, M}, {&bank->inside, M}, {&bank->on, 4 * M}, {&bank->off, 4 * M},
        {&bank->a, M}, {&bank->s, M}, {&bank->cos, M}, {&bank->sin, M}, {&bank->k, G}, {&bank->kept, G},
    };
    const size_t count = sizeof rooms / sizeof *rooms;
    int64_t size = 0;
    for (size_t i = 0; i < count; i++) size += rooms[i].size;
    if (posix_memalign((void **)&bank->memory, ALIGNMENT, (size_t)size * sizeof(float))) return 1;
    memset(bank->memory, 0, (size_t)size * sizeof(float));
    for (size_t i = 0, at = 0; i < count; at += (size_t)rooms[i].size, i++) *rooms[i].array = bank->memory + at;
    for (int64_t j = 0; j < M; j++) {
        bank->scale[DECAY * M + j] = bank->scale[GATE_RE * M + j] = bank->scale[GATE_IM * M + j] = 1.0f;
        bank->scale[TURN * M + j] = 2.0f / PI; /* tanh(x) = sigmoid(2x) - sigmoid(-2x) */
    }
    NAME(widen)(bank, job->beta, 1, bank->bias + DECAY * M);
    NAME(widen)(bank, job->omega, 1, bank->omega);
    for (int64_t j = 0; j < M; j++) bank->omega[j] = on_circle(bank->omega[j]);
    for (int64_t g = 0; g < job->G; g++) {
        memset(bank->inside + g * m, 0xff, (size_t)job->n * sizeof(float));
        bank->kept[g] = 1.0f; /* and k is 0: uncoupled, it stays so */
    }
    return 0;
}

/* k of a token's groups, and 1 - k. */
static inline void NAME(couple)(const NAME(Bank) *bank, const float *logits) {
    for (int64_t g = 0; g < bank->job->G; g += LANES) {
        float some[LANES] = {0};
        int64_t left = bank->job->G - g;
        Floats k, kept;
        memcpy(some, logits + g, (size_t)(left < LANES ? left : LANES) * 4);
        NAME(sigmoids)(NAME(load)(some) + COUPLING_BIAS, &k, &kept);
        NAME(store)(bank->k + g, k);
        NAME(store)(bank->kept + g, kept);
    }
}

/* The means of a group's states. */
static inline void NAME(mean_field)(const float *re, const float *im, int64_t m, float n, Floats *mean_re,
                                    Floats *mean_im) {
    Floats sum_re = {0}, sum_im = {0};
    for (int64_t j = 0; j < m; j += LANES) {
        sum_re += NAME(load)(re + j);
        sum_im += NAME(load)(im + j);
    }
    *mean_re = NAME(total)(sum_re) / n;
    *mean_im = NAME(total)(sum_im) / n;
}

/* All that a token's inputs alone decide, from the wide ones and the coupling logits. In loops of their own, which depend on nothing: the processor then works on
   several vectors at once, where one long chain from input to output would keep it waiting. */
static inline void NAME(prepare)(const NAME(Bank) *bank, const float *p, const float *logits) {
    const int64_t M = bank->M;
    const float *scale = bank->scale, *bias = bank->bias, *omega = bank->omega;
    float *on = bank->on, *off = bank->off, *cos_to = bank->cos, *sin_to = bank->sin;
    for (int64_t i = 0; i < 4 * M; i += LANES) {
        Floats of_x, of_minus_x;
        NAME(sigmoids)(NAME(load)(p + 2 * M + i) * NAME(load)(scale + i) + NAME(load)(bias + i), &of_x, &of_minus_x);
        NAME(store)(on + i, of_x);
        NAME(store)(off + i, of_minus_x);
    }
    for (int64_t j = 0; j < M; j += LANES) {
        Floats a = NAME(load)(on + DECAY * M + j), forgets = NAME(load)(off + DECAY * M + j);
        NAME(store)(bank->s + j, NAME(root)(forgets + forgets * a + INPUT_FLOOR));
        NAME(store)(bank->a + j, (Floats)((Ints)a & (Ints)NAME(load)(bank->inside + j)));
    }
    for (int64_t j = 0; j < M; j += LANES) {
        Floats sin = {0}, cos = NAME(everywhere)(1.0f);
        if (bank->job->rotating) {
            Floats turn = NAME(load)(on + TURN * M + j) - NAME(load)(off + TURN * M + j);
            NAME(sincos_near)(NAME(load)(omega + j) + PI * turn, &sin, &cos);
        }
        NAME(store)(cos_to + j, cos);
        NAME(store)(sin_to + j, sin);
    }
    if (bank->job->coupled) NAME(couple)(bank, logits);
}

/* One token of one group, forward: from the states before to those after, which may take their place, and what is read
   of them. Returns |sum of the unit phasors|. */
static inline float NAME(group_forward)(const NAME(Bank) *bank, const float *p, const float *before, float *z, float *y,
                                        int64_t g) {
    const int64_t M = bank->M, m = bank->m;
    const float *on = bank->on, *a_from = bank->a, *s_from = bank->s, *cos_from = bank->cos, *sin_from = bank->sin;
    const Floats k = NAME(everywhere)(bank->k[g]);
    Floats mean_re, mean_im, unit_re = {0}, unit_im = {0};
    NAME(mean_field)(before + g * m, before + M + g * m, m, (float)bank->job->n, &mean_re, &mean_im);
    for (int64_t j = g * m; j < (g + 1) * m; j += LANES) {
        Floats a = NAME(load)(a_from + j), s = NAME(load)(s_from + j);
        Floats d_re = a * NAME(load)(cos_from + j), d_im = a * NAME(load)(sin_from + j);
        Floats re = NAME(load)(before + j), im = NAME(load)(before + M + j);
        re += k * (mean_re - re);
        im += k * (mean_im - im);
        Floats z_re = d_re * re - d_im * im + s * NAME(load)(p + j);
        Floats z_im = d_re * im + d_im * re + s * NAME(load)(p + M + j);
        NAME(store)(z + j, z_re);
        NAME(store)(z + M + j, z_im);
        NAME(store)(y + j, z_re * (NAME(load)(p + 4 * M + j) * NAME(load)(on + GATE_RE * M + j)));
        NAME(store)(y + M + j, z_im * (NAME(load)(p + 5 * M + j) * NAME(load)(on + GATE_IM * M + j)));
        Floats to_unit = 1.0f / NAME(root)(z_re * z_re + z_im * z_im + UNIT_FLOOR);
        unit_re += z_re * to_unit;
        unit_im += z_im * to_unit;
    }
    float re = NAME(total)(unit_re)[0], im = NAME(total)(unit_im)[0];
    return sqrtf(re * re + im * im);
}

static void NAME(sequence_forward)(const NAME(Bank) *bank, int64_t b) {
    const Job *job = bank->job;
    const int64_t N = job->N, G = job->G, P = 6 * N + G;
    const int direct = bank->m == job->n;
    const float *before = NAME(wide)(bank, job->start + b * 2 * N, 2, bank->wide_z);
    for (int64_t t = b * job->S; t < (b + 1) * job->S; t++) {
        const float *p = NAME(wide)(bank, job->p + t * P, 6, bank->wide_p);
        float *z = direct ? job->z + t * 2 * N : bank->wide_z, *y = direct ? job->y + t * 2 * N : bank->wide_y;
        float order = 0, coupling = 0;
        NAME(prepare)(bank, p, job->p + t * P + 6 * N);
        for (int64_t g = 0; g < G; g++) {
            order += NAME(group_forward)(bank, p, before, z, y, g);
            coupling += bank->k[g];
        }
        job->order[t] = order / (float)N;
        job->coupling[t] = coupling / (float)G;
        before = z;
        if (direct) continue;
        NAME(narrow)(bank, z, 2, job->z + t * 2 * N);
        NAME(narrow)(bank, y, 2, job->y + t * 2 * N);
    }
}

static int NAME(forward)(const void *job, int64_t first, int64_t last) {
    NAME(Bank) bank;
    if (NAME(open)(&bank, job)) return 1;
    for (int64_t b = first; b < last; b++) NAME(sequence_forward)(&bank, b);
    free(bank.memory);
    return 0;
}

/* One token of one group, backward: the carry, the gradient by its states from all that follow, becomes the one by the
   states before. Returns the gradient by the group's coupling logit. */
static inline float NAME(group_backward)(const NAME(Bank) *bank, const float *p, const float *before, const float *z,
                                         const float *d_y, float *d_p, int64_t g) {
    const int64_t M = bank->M, m = bank->m;
    const float *on = bank->on, *off = bank->off;
    const float *a_from = bank->a, *s_from = bank->s, *cos_from = bank->cos, *sin_from = bank->sin;
    const Floats k = NAME(everywhere)(bank->k[g]), kept = NAME(everywhere)(bank->kept[g]);
    float *const carry = bank->carry, *const d_beta = bank->d_bank, *const d_omega = bank->d_bank + M;
    Floats mean_re, mean_im, sum_re = {0}, sum_im = {0}, d_k = {0};
    NAME(mean_field)(before + g * m, before + M + g * m, m, (float)bank->job->n, &mean_re, &mean_im);
    for (int64_t j = g * m; j < (g + 1) * m; j += LANES) {
        Floats d_z[2]; /* real and imaginary part, as y, z and the first two channels of p lie */
        for (int part = 0; part < 2; part++) {
            const int64_t at = part * M + j;
            Floats gate = NAME(load)(p + 4 * M + at), d = NAME(load)(d_y + at);
            Floats open = NAME(load)(on + GATE_RE * M + at), shut = NAME(load)(off + GATE_RE * M + at);
            NAME(store)(d_p + 4 * M + at, d * NAME(load)(z + at) * (open + open * gate * shut));
            d_z[part] = NAME(load)(carry + at) + d * (gate * open);
            NAME(store)(d_p + at, NAME(load)(s_from + j) * d_z[part]);
        }
        Floats a = NAME(load)(a_from + j), s = NAME(load)(s_from + j);
        Floats cos = NAME(load)(cos_from + j), sin = NAME(load)(sin_from + j);
        Floats re = NAME(load)(before + j), im = NAME(load)(before + M + j);
        Floats to_re = mean_re - re, to_im = mean_im - im;
        re += k * to_re;
        im += k * to_im;
        /* by e^{i phi} a, by s, and by the decay's logit and phi that they come from */
        Floats d_re = d_z[0] * re + d_z[1] * im, d_im = d_z[1] * re - d_z[0] * im;
        Floats d_s = NAME(load)(p + j) * d_z[0] + NAME(load)(p + M + j) * d_z[1];
        Floats d_decay = (cos * d_re + sin * d_im - d_s * (a / s)) * (a * NAME(load)(off + DECAY * M + j));
        Floats d_phi = a * (cos * d_im - sin * d_re);
        Floats slope = 4.0f * NAME(load)(on + TURN * M + j) * NAME(load)(off + TURN * M + j);
        NAME(store)(d_p + 2 * M + j, d_decay);
        NAME(store)(d_p + 3 * M + j, d_phi * slope);
        NAME(store)(d_beta + j, NAME(load)(d_beta + j) + d_decay);
        NAME(store)(d_omega + j, NAME(load)(d_omega + j) + d_phi);
        /* by what the states before were drawn to */
        Floats w_re = a * (cos * d_z[0] + sin * d_z[1]), w_im = a * (cos * d_z[1] - sin * d_z[0]);
        NAME(store)(carry + j, w_re);
        NAME(store)(carry + M + j, w_im);
        sum_re += w_re;
        sum_im += w_im;
        d_k += to_re * w_re + to_im * w_im;
    }
    sum_re = NAME(total)(sum_re) * (k / (float)bank->job->n);
    sum_im = NAME(total)(sum_im) * (k / (float)bank->job->n);
    for (int64_t j = g * m; j < (g + 1) * m; j += LANES) {
        NAME(store)(carry + j, kept * NAME(load)(carry + j) + sum_re);
        NAME(store)(carry + M + j, kept * NAME(load)(carry + M + j) + sum_im);
    }
    return NAME(total)(d_k)[0] * (bank->k[g] * bank->kept[g]);
}

static void NAME(sequence_backward)(const NAME(Bank) *bank, int64_t b) {
    const Job *job = bank->job;
    const int64_t N = job->N, G = job->G, P = 6 * N + G, first = b * job->S;
    const int direct = bank->m == job->n;
    memset(bank->carry, 0, (size_t)bank->M * 2 * sizeof(float));
    memset(bank->d_bank, 0, (size_t)bank->M * 2 * sizeof(float));
    for (int64_t t = first + job->S - 1; t >= first; t--) {
        const float *before = t > first ? job->z + (t - 1) * 2 * N : job->start + b * 2 * N;
        const float *p = NAME(wide)(bank, job->p + t * P, 6, bank->wide_p);
        const float *z = NAME(wide)(bank, job->z + t * 2 * N, 2, bank->wide_z);
        const float *d_y = NAME(wide)(bank, job->d_y + t * 2 * N, 2, bank->wide_y);
        float *d_p = direct ? job->d_p + t * P : bank->d_wide_p, *d_coupling = job->d_p + t * P + 6 * N;
        before = NAME(wide)(bank, before, 2, bank->wide_before);
        if (t >= 2) fetch_token(job, t - 2);
        NAME(prepare)(bank, p, job->p + t * P + 6 * N);
        for (int64_t g = 0; g < G; g++) d_coupling[g] = NAME(group_backward)(bank, p, before, z, d_y, d_p, g);
        if (!job->rotating) memset(d_p + 3 * bank->M, 0, (size_t)bank->M * sizeof(float)); /* turns were not read */
        if (!direct) NAME(narrow)(bank, d_p, 6, job->d_p + t * P);
    }
    if (!job->rotating) memset(bank->d_bank + bank->M, 0, (size_t)bank->M * sizeof(float)); /* nor was omega */
    NAME(narrow)(bank, bank->carry, 2, job->d_start + b * 2 * N);
    NAME(narrow)(bank, bank->d_bank, 2, job->d_bank + b * 2 * N);
}

static int NAME(backward)(const void *job, int64_t first, int64_t last) {
    NAME(Bank) bank;
    if (NAME(open)(&bank, job)) return 1;
    for (int64_t b = first; b < last; b++) NAME(sequence_backward)(&bank, b);
    free(bank.memory);
    return 0;
}
