// NCCL without GPUs, beside the false driver, whose memory is the host's: ranks are processes that leave each other files, in a
// folder whose name is the communicator's id. What it is told to fail at ($FAKE_FAIL, on rank $FAKE_FAIL_RANK or all) it
// refuses; calls are written to $FAKE_LOG.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char folder[128];
} Id;
typedef struct {
    Id id;
    int rank, ranks;
    unsigned sent[8], received[8];
} Comm;
typedef struct {
    Comm *comm;
    const void *from;
    void *to;
    size_t bytes;
    int peer;
} Message;

static int rank = -1, grouped, count;
static Message messages[64];

static int fails(const char *call) {
    const char *which = getenv("FAKE_FAIL"), *where = getenv("FAKE_FAIL_RANK");
    return which && !strcmp(which, call) && (!where || atoi(where) == rank);
}
static void note(const char *call, long long number) {
    FILE *file = fopen(getenv("FAKE_LOG") ? getenv("FAKE_LOG") : "/dev/null", "a");
    fprintf(file, "%s %lld\n", call, number);
    fclose(file);
}
#define CALL(number) \
    if (note(__func__, number), fails(__func__)) return 2

static void put(const char *name, const void *from, size_t bytes) {
    char part[300];
    snprintf(part, sizeof part, "%s.part", name);
    FILE *file = fopen(part, "w");
    fwrite(from, 1, bytes, file);
    fclose(file);
    rename(part, name);
}
// 6, ncclRemoteError, where nothing has come for 20 s; 5, ncclInvalidUsage, where it has another length.
static int take(const char *name, void *to, size_t bytes) {
    for (int look = 0; access(name, R_OK); look++) {
        if (look == 20000) return 6;
        usleep(1000);
    }
    FILE *file = fopen(name, "r");
    const size_t had = fread(to, 1, bytes, file), more = fgetc(file) != EOF;
    fclose(file);
    return had == bytes && !more ? 0 : 5;
}
static void message_name(char *name, Comm *c, int from, int to, unsigned number) {
    snprintf(name, 200, "%s/%d-%d-%u", c->id.folder, from, to, number);
}
static int deliver(void) {
    char name[200];
    int result = 0;
    for (Message *m = messages; m < messages + count; m++) {
        if (!m->from) continue;
        message_name(name, m->comm, m->comm->rank, m->peer, m->comm->sent[m->peer]++);
        put(name, m->from, m->bytes);
    }
    for (Message *m = messages; m < messages + count && !result; m++) {
        if (!m->to) continue;
        message_name(name, m->comm, m->peer, m->comm->rank, m->comm->received[m->peer]++);
        result = take(name, m->to, m->bytes);
    }
    return count = 0, result;
}
static int post(Message m) { return messages[count++] = m, grouped ? 0 : deliver(); }

int ncclGetVersion(int *version) { return *version = 23003, fails("ncclGetVersion") ? 3 : 0; }
const char *ncclGetErrorString(int result) {
    return result == 2 ? "unhandled system error" : result == 6 ? "remote process exited" : "another error";
}
int ncclGetUniqueId(Id *id) {
    CALL(0);
    memset(id, 0, sizeof *id);
    snprintf(id->folder, sizeof id->folder, "%s/nccl-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(id->folder) ? 0 : 2;
}
int ncclCommInitRank(Comm **comm, int ranks, Id id, int own) {
    rank = own;
    CALL(own);
    *comm = calloc(1, sizeof(Comm));
    (*comm)->id = id, (*comm)->rank = own, (*comm)->ranks = ranks;
    int result = 0;
    for (int r = 0; r < ranks && !result; r++) {
        char name[200], text[1];
        snprintf(name, sizeof name, "%s/joined-%d", id.folder, r);
        if (r == 0) {
            char mine[200];
            snprintf(mine, sizeof mine, "%s/joined-%d", id.folder, own);
            put(mine, "", 0);
        }
        result = take(name, text, 0);
    }
    return result;
}
int ncclCommDestroy(Comm *c) {
    CALL(c->rank);
    return free(c), 0;
}
int ncclCommAbort(Comm *c) {
    CALL(c->rank);
    return free(c), 0;
}
int ncclCommGetAsyncError(Comm *c, int *state) { return *state = fails("ncclCommGetAsyncError") ? 6 : 0, 0; }
int ncclGroupStart(void) {
    CALL(0);
    return grouped = 1, 0;
}
int ncclGroupEnd(void) {
    CALL(count);
    return grouped = 0, deliver();
}
#ifndef OLD
int ncclSend(const void *from, size_t n, int type, int peer, Comm *c, void *stream) {
    CALL(n);
    return type != 7 ? 4 : post((Message){c, from, NULL, n * 4, peer});
}
int ncclRecv(void *to, size_t n, int type, int peer, Comm *c, void *stream) {
    CALL(n);
    return type != 7 ? 4 : post((Message){c, NULL, to, n * 4, peer});
}
#endif
static int all_to_all(const void *from, char *to, size_t n, Comm *c) {
    for (int r = 0; r < c->ranks; r++) {
        messages[count++] = (Message){c, from, NULL, n * 4, r};
        messages[count++] = (Message){c, NULL, to + r * n * 4, n * 4, r};
    }
    return deliver();
}
int ncclAllGather(const void *from, void *to, size_t n, int type, Comm *c, void *stream) {
    CALL(n);
    return type != 7 ? 4 : all_to_all(from, to, n, c);
}
// One rank after the other.
int ncclAllReduce(const float *from, float *to, size_t n, int type, int how, Comm *c, void *stream) {
    CALL(n);
    float *all = malloc(c->ranks * n * 4);
    const int result = type != 7 || how != 0 ? 4 : all_to_all(from, (char *)all, n, c);
    for (size_t k = 0; k < n; k++) {
        to[k] = all[k];
        for (int r = 1; r < c->ranks; r++) to[k] += all[r * n + k];
    }
    return free(all), result;
}
