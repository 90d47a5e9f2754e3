/* The order parameters of banks of oscillators, forward and backward; called from kssm/readout_metal.py.

   Unverified: never run on a Mac. A threadgroup has 32 threads and one token. Every sum has one fixed order and nothing
   is atomic, so the outcome depends on the token alone. Powers of z start where n is a power of two: n theta is exact
   there, and rounding does not pile up over all H. */

#include <metal_stdlib>
using namespace metal;

#define LANES 32
#define HARMONICS 16
#define MAGNITUDE_FLOOR 1e-8f
/* Beyond this angle the three-part reduction loses digits. */
#define MOST_ANGLE 8192.0f

/* cos and sin of an angle. Cody and Waite's reduction by pi/2 in three parts and the polynomials of Cephes (Moshier
   1992); what the reduction rounds off is put back to first order: an error of z grows with every power of z. */
static float2 power(float x) {
    if (!(fabs(x) <= MOST_ANGLE)) return float2(precise::cos(x), precise::sin(x)); /* also infinite, or no number */
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits */
    const float shifted = x * 0.636619772367581343f + to_integer;
    const float k = shifted - to_integer;
    const int quadrant = as_type<int>(shifted);
    const float high = x - k * 1.5703125f, part = k * 4.837512969970703125e-4f; /* both exact */
    const float near = high - part;
    const float rest = ((high - near) - part) - k * 7.54978995489188216e-8f;
    const float r = near + rest, low = (near - r) + rest;
    const float z = r * r;
    const float s_tail = r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
    const float c_tail = z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const float s = r + (s_tail + low), c = 1.0f - (0.5f * z - (c_tail - low * r));
    const bool swap = (quadrant & 1) != 0;
    const float sine = swap ? c : s, cosine = swap ? s : c;
    return float2(((quadrant + 1) & 2) != 0 ? -cosine : cosine, (quadrant & 2) != 0 ? -sine : sine);
}

static float2 times(float2 a, float2 b) { return float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }

/* theta [M, N] to readings [M, 3H]: Re Z_1..Z_H, Im Z_1..Z_H, |Z_1|..|Z_H|. Threadgroups: harmonics / 16, M. */
kernel void readout_forward(device const float *theta [[buffer(0)]], device float *readings [[buffer(1)]],
                            constant long &N [[buffer(2)]], constant long &H [[buffer(3)]],
                            uint2 group [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_threadgroup]]) {
    threadgroup float sums[2 * HARMONICS][LANES + 1]; /* one more: else all threads would want one memory bank */
    const long token = group.y, first = long(group.x) * HARMONICS;
    long start = 1; /* the greatest power of two up to first */
    while (2 * start <= first) start *= 2;
    float re[HARMONICS] = {0}, im[HARMONICS] = {0};
    for (long j = lane; j < N; j += LANES) {
        const float angle = theta[token * N + j];
        const float2 z = power(angle);
        float2 w = power(angle * float(start));
        for (long n = start; n <= first; n++) w = times(w, z);
        _Pragma("unroll") /* keeps the sums in registers */
        for (int n = 0; n < HARMONICS; n++) {
            re[n] += w.x;
            im[n] += w.y;
            w = times(w, z);
        }
    }
    for (int n = 0; n < HARMONICS; n++) {
        sums[n][lane] = re[n];
        sums[HARMONICS + n][lane] = im[n];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane >= HARMONICS || first + long(lane) >= H) return;
    float sum_re = 0, sum_im = 0;
    for (int i = 0; i < LANES; i++) {
        sum_re += sums[lane][i];
        sum_im += sums[HARMONICS + lane][i];
    }
    sum_re /= float(N);
    sum_im /= float(N);
    device float *out = readings + token * 3 * H + first + long(lane);
    out[0] = sum_re;
    out[H] = sum_im;
    out[2 * H] = precise::sqrt(sum_re * sum_re + sum_im * sum_im + MAGNITUDE_FLOOR);
}

/* dL/dtheta_j = -Im sum_n (n g_n / N) z_j^n by Horner's rule, g_n = dL/d Re Z_n - i dL/d Im Z_n with the gradient of
   the magnitude folded in. Threadgroups: N / 32, M. */
kernel void readout_backward(device const float *theta [[buffer(0)]], device const float *readings [[buffer(1)]],
                             device const float *d_readings [[buffer(2)]], device float *d_theta [[buffer(3)]],
                             constant long &N [[buffer(4)]], constant long &H [[buffer(5)]],
                             uint2 group [[threadgroup_position_in_grid]],
                             uint lane [[thread_index_in_threadgroup]]) {
    threadgroup float g_re[LANES], g_im[LANES]; /* of 32 harmonics, the last first */
    const long token = group.y, j = long(group.x) * LANES + long(lane);
    const float2 z = j < N ? power(theta[token * N + j]) : float2(1.0f, 0.0f);
    float2 sum = float2(0.0f, 0.0f);
    for (long last = H; last > 0; last -= LANES) {
        const long n = last - long(lane);
        threadgroup_barrier(mem_flags::mem_threadgroup); /* nobody reads the 32 before these any more */
        if (n > 0) {
            device const float *Z = readings + token * 3 * H + n - 1, *d_Z = d_readings + token * 3 * H + n - 1;
            const float scale = float(n) / float(N), d_mag = d_Z[2 * H] / Z[2 * H];
            g_re[lane] = scale * (d_Z[0] + d_mag * Z[0]);
            g_im[lane] = -scale * (d_Z[H] + d_mag * Z[H]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const int count = last < LANES ? int(last) : LANES;
        for (int i = 0; i < count; i++) {
            const float2 product = times(sum, z);
            sum = float2(product.x + g_re[i], product.y + g_im[i]);
        }
    }
    if (j < N) d_theta[token * N + j] = -(sum.x * z.y + sum.y * z.x);
}
