// clock: how many cycles a multiprocessor counts while the GPU's own timer runs on.
//
//   read = [cycles, nanoseconds] from one step of the timer to the first one at least `nanoseconds` later
//
// Shapes    read [2] i32.
// Plan      One thread polls the timer: first until it steps, which may be only once a microsecond, then until the time is over; in
//           all `turns` times at most, where a timer stands still. To be queued behind what is timed: a clock that gave way
//           to power or heat takes milliseconds to come back, this some tenths of one.
// Cost      0 flops; 8 bytes.
// Numerics  Integers. Both ends lie a poll behind a step of the timer: the quotient is right to some cycles of all.
// Limits    less than 2^31 cycles: about a second. On the emulator no time passes, and both are 0.
// Source    PTX ISA, special registers %clock64 and %globaltimer.
#include "common.cuh"

__device__ inline long long globaltimer() {
    long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
    return now;
}

// Launched with one.
KERNEL void __launch_bounds__(32) clock_fwd(int* __restrict__ read, int turns, int nanoseconds) {
    const long long before = globaltimer();
    long long from = before;
    while (from == before && turns-- > 0) from = globaltimer();
    const long long start = clock64();
    long long now = from;
    while (now - from < nanoseconds && turns-- > 0) now = globaltimer();
    read[0] = int(clock64() - start), read[1] = int(now - from);
}
