// What `assert` becomes.
#include <cassert>

extern "C" __global__ void asserted(int* out, int n) {
    int i = threadIdx.x;
    assert(i < n && "as many as there are");  // BUG(asserted)
    out[i] = i;
}
