/* Stands in for <metal_stdlib>, so that a C++ compiler reads kssm/native/readout.metal and a CPU runs it.

   As many threads as a threadgroup has run one threadgroup after the other; what is `threadgroup` is shared among them.
   It says nothing about Apple's compiler, its arithmetic or its GPUs. */

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define kernel static
#define device
#define constant const
#define threadgroup static

static_assert(sizeof(long) == 8, "Metal's long has 64 bits");
typedef unsigned int uint;

struct uint2 {
    uint x, y;
};

struct float2 {
    float x, y;
    float2(float x, float y) : x(x), y(y) {}
};

template <typename To, typename From> static To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

namespace metal {
using std::fabs;
namespace precise {
using std::cos;
using std::sin;
using std::sqrt;
} // namespace precise
enum class mem_flags { mem_threadgroup };
} // namespace metal

static std::barrier<> *threads_meet;
static void threadgroup_barrier(metal::mem_flags) { threads_meet->arrive_and_wait(); }

/* Runs a kernel for a grid of threads by threadgroups; `body` gets the threadgroup and the thread within it. */
template <typename Body> static void dispatch(const uint32_t *threads, const uint32_t *group_size, Body body) {
    std::barrier<> meeting(group_size[0]);
    threads_meet = &meeting;
    std::vector<std::thread> running;
    for (uint lane = 0; lane < group_size[0]; lane++)
        running.emplace_back([=] {
            for (uint y = 0; y < threads[1]; y++)
                for (uint x = 0; x < threads[0] / group_size[0]; x++) {
                    body(uint2{x, y}, lane);
                    threads_meet->arrive_and_wait();
                }
        });
    for (auto &thread : running) thread.join();
}
