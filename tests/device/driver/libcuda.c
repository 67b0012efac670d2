// A CUDA driver without a GPU: memory is the host's, kernels are written to $FAKE_LOG in place of being run. What it answers
// is set by the environment, so that every refusal of the real one can be had. Compiled and loaded by tests/device/driver.rs.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    unsigned id;
    char pad[4];
    union {
        char size[64];
        unsigned cluster[3];
        int overlap;
    } value;
} Attribute;
typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream;
    Attribute *attributes;
    unsigned count;
} Config;

static int set(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
static FILE *log_file(void) {
    static FILE *file;
    if (!file) file = fopen(getenv("FAKE_LOG") ? getenv("FAKE_LOG") : "/dev/null", getenv("FAKE_APPEND") ? "a" : "w");
    return file;
}
#define LOG(...) (fprintf(log_file(), __VA_ARGS__), fflush(log_file()))

int cuDriverGetVersion(int *v) { return *v = set("FAKE_VERSION", 13000), 0; }
int cuInit(unsigned flags) { return set("FAKE_INIT", 0); }
int cuDeviceGetCount(int *n) { return *n = set("FAKE_COUNT", 1), 0; }
int cuDeviceGet(int *d, int n) { return *d = n, 0; }
int cuDeviceGetName(char *name, int room, int d) { return snprintf(name, room, "Fake %d", d), 0; }
int cuDeviceGetAttribute(int *x, int what, int d) {
    *x = what == 75 ? set("FAKE_MAJOR", 9) : what == 76 ? set("FAKE_MINOR", 0) : what == 16 ? 132 : 0;
    return 0;
}
int cuDeviceGetPCIBusId(char *text, int room, int d) { return snprintf(text, room, "0000:%02x:00.0", d), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int d) { return *bytes = 1ull << 30, 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { return *c = "context", 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuStreamCreate(void **s, unsigned flags) { return *s = "stream", 0; }
int cuStreamDestroy_v2(void *s) { return 0; }
static int launched;
// A capture counts what it records, and nothing else may go on meanwhile: 900 is CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED.
static int capturing, nodes, mode;
#define IDLE() if (capturing) return 900
// What kernels for Hopper do: nothing, like all others, or "hang", "fault", "wrong".
static int hopper;
// Of kernels whose name holds $FAKE_FAST a stretch between events takes less time; where one holds $FAKE_WRONG, what is read
// is wrong until something is written.
static int fast, wrong;
static int named(const char *name, const char *variable) { return getenv(variable) && strstr(name, getenv(variable)); }
static int hopper_does(const char *what) { return hopper && getenv("FAKE_SM90") && !strcmp(getenv("FAKE_SM90"), what); }
int cuStreamSynchronize(void *s) {
    IDLE();
    if (hopper_does("fault")) return 700;
    return LOG("wait\n"), launched ? set("FAKE_AFTER", 0) : 0;
}
int cuStreamQuery(void *s) { return set("FAKE_QUERY", 0); }
int cuDeviceGetDefaultMemPool(void **pool, int d) { return *pool = "pool", 0; }
int cuMemPoolSetAttribute(void *pool, int what, void *value) { return *(uint64_t *)value == ~0ull ? 0 : 1; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = 1 << 29, *total = 1 << 30, 0; }
int cuMemAllocAsync(uint64_t *p, size_t bytes, void *s) {
    IDLE();
    if (bytes > set("FAKE_MOST", 4 << 20)) return 2;
    return *p = (uint64_t)malloc(bytes), 0;
}
int cuMemFreeAsync(uint64_t p, void *s) { return free((void *)p), 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *s) {
    IDLE();
    return wrong = 0, memcpy((void *)to, from, n), 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *s) {
    IDLE();
    return hopper_does("wrong") || wrong ? memset(to, 0x40, n) : memcpy(to, (void *)from, n), 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *s) { return nodes++, memcpy((void *)to, (void *)from, n), 0; }
int cuMemsetD8Async(uint64_t to, unsigned char x, size_t n, void *s) { return nodes++, memset((void *)to, x, n), 0; }
int cuMemHostAlloc(void **p, size_t bytes, unsigned flags) { return *p = malloc(bytes), flags != 0; }
int cuMemFreeHost(void *p) { return free(p), 0; }
int cuModuleLoadData(void **m, const char *image) {
    if (capturing && mode != 2) return 900;
    LOG("load %s\n", memcmp(image, "\177ELF", 4) ? "ptx" : "cubin");
    return *m = "module", set("FAKE_LOAD", 0);
}
int cuModuleUnload(void *m) { return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { return *f = strdup(name), 0; }
int cuFuncGetAttribute(int *value, int what, void *f) { return *value = what == 1 ? set("FAKE_STATIC", 0) : -1, 0; }
int cuFuncSetAttribute(void *f, int what, int value) { return LOG("attribute %d %d\n", what, value), 0; }
int cuLaunchKernelEx(const Config *c, const char *name, void **values, void **extra) {
    if (c->grid[1] > 65535 || c->grid[2] > 65535) return 1;
    if (strstr(name, "_sm90")) hopper = 1;
    fast |= !!named(name, "FAKE_FAST"), wrong |= !!named(name, "FAKE_WRONG");
    while (hopper_does("hang"))
        ;
    LOG("%s %u,%u,%u %u,%u,%u %u", name, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2],
        c->shared);
    for (unsigned i = 0; i < c->count; i++) LOG(" @%u=%d", c->attributes[i].id, c->attributes[i].value.overlap);
    // What each kernel takes, for the ones that the test launches: an address by its first float, numbers, and a struct of 8
    // floats.
    const char *types = !strcmp(name, "l2norm_fwd") ? "pppiif" : !strcmp(name, "adamw_step") ? "ppppni8" : "";
    for (int i = 0; types[i]; i++) {
        if (types[i] == 'i') LOG(" %d", *(int *)values[i]);
        if (types[i] == 'f') LOG(" %g", *(float *)values[i]);
        if (types[i] == 'p') LOG(" [%g]", **(float **)values[i]);
        for (int k = 0; types[i] == '8' && k < 8; k++) LOG(" %g", ((float *)values[i])[k]);
        if (types[i] == 'n') LOG(" %s", *(void **)values[i] ? "there" : "null");
    }
    if (!strcmp(name, "l2norm_fwd")) ***(float ***)values = 42;
    if (!strcmp(name, "add_fwd"))
        for (int k = 0; k < *(int *)values[2]; k++) (*(float **)values[0])[k] += (*(float **)values[1])[k];
    // 1980 MHz for a tenth of a millisecond.
    if (!strcmp(name, "clock_fwd")) (**(int ***)values)[0] = 198000, (**(int ***)values)[1] = 100000;
    LOG("\n");
    launched = 1, nodes++;
    return set("FAKE_LAUNCH", 0);
}
// Without the attribute of a cluster there is nothing to count: 912 is CUDA_ERROR_INVALID_CLUSTER_SIZE.
int cuOccupancyMaxActiveClusters(int *count, const char *name, const Config *c) { return *count = 66, c->count ? 0 : 912; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const char *name, int threads, size_t shared) {
    return *count = 1, 0;
}
int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *at, const uint64_t *sizes, const uint64_t *strides,
                           const unsigned *tile, const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    if (strides[0] % 16) return 1;
    map[0] = sizes[0], map[1] = sizes[1], map[2] = strides[0], map[3] = tile[0], map[4] = tile[1], map[5] = swizzle;
    map[6] = type, map[7] = rank * 100 + steps[0] * 10 + steps[1];
    return 0;
}
int cuEventCreate(void **e, unsigned flags) { return *e = "event", flags & 2 ? 1 : 0; }
int cuEventDestroy_v2(void *e) { return 0; }
static float between;
int cuEventRecord(void *e, void *s) { return LOG("event\n"), between = fast ? 1.2 : 1.5, fast = 0; }
int cuEventSynchronize(void *e) { return 0; }
int cuEventElapsedTime(float *ms, void *a, void *b) { return *ms = between, 0; }
int cuEventElapsedTime_v2(float *ms, void *a, void *b) { return *ms = between, 0; }
int cuThreadExchangeStreamCaptureMode(int *own) {
    const int old = mode;
    return mode = *own, *own = old, 0;
}
int cuStreamBeginCapture_v2(void *s, int mode) { return LOG("capture %d\n", mode), capturing = 1, nodes = 0; }
int cuStreamEndCapture(void *s, int **graph) {
    LOG("captured %d\n", nodes);
    *graph = malloc(sizeof(int)), **graph = nodes;
    return capturing = 0;
}
int cuGraphInstantiateWithFlags(int **exec, const int *graph, unsigned long long flags) {
    LOG("instantiate %d\n", *graph);
    *exec = malloc(sizeof(int)), **exec = *graph;
    return flags != 0;
}
int cuGraphExecUpdate_v2(const int *exec, const int *graph, void *info) {
    LOG("update %d to %d\n", *exec, *graph);
    return *exec == *graph ? 0 : 910;
}
int cuGraphDestroy(void *graph) { return free(graph), 0; }
int cuGraphLaunch(const int *exec, void *s) { return LOG("replay %d\n", *exec), 0; }
int cuGraphExecDestroy(void *exec) { return LOG("dropped\n"), free(exec), 0; }
