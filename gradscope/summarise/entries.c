/* Statistics of entries in host memory, each read once.
 *
 * torch reads a tensor anew for every number, and each call costs more than the arithmetic on a small tensor. Here
 * one pass gives all numbers, as fast as memory delivers. Entries are added in float lanes, which the compiler turns
 * into vector instructions, and every BLOCK entries into doubles; what leaves the range of float is read again in
 * doubles.
 */
#include "entries.h"

#define LANES 32
#define BLOCK 2048
/* Threads share so many entries or more, in pieces: waking one costs as much as reading 50,000. */
#define SHARED (1 << 18)
#define PIECE (1 << 15)
/* Reading a line that lies apart takes as long as so many entries in a row. */
#define APART 64
/* Beyond these magnitudes squares leave the range of float or lose digits. */
#define SMALLEST 1e-16
#define LARGEST 1e18
/* Below this share of variance in the mean square, E[x^2] - E[x]^2 has lost too many digits. */
#define CANCELLATION 0.02

typedef struct {
    double sum, square, low, high, zeros, inside, nonfinite;
} Part;

static const Part NOTHING = {0, 0, INFINITY, -INFINITY, 0, 0, 0};

static void join(Part *whole, const Part *part) {
    whole->sum += part->sum;
    whole->square += part->square;
    whole->low = part->low < whole->low ? part->low : whole->low;
    whole->high = part->high > whole->high ? part->high : whole->high;
    whole->zeros += part->zeros;
    whole->inside += part->inside;
    whole->nonfinite += part->nonfinite;
}

/* Read entries one by one in doubles: of any size, NaN and infinity among them. */
static Part read_carefully(const char *data, int64_t entries, int type, Wanted wanted) {
    Part part = NOTHING;
    for (int64_t i = 0; i < entries; i++) {
        double x = double_at(data, i, type);
        if (!isfinite(x)) {
            part.nonfinite += 1;
            continue;
        }
        part.sum += x;
        part.square += x * x;
        part.low = x < part.low ? x : part.low;
        part.high = x > part.high ? x : part.high;
        part.zeros += x == 0;
        part.inside += x > wanted.low && x < wanted.high;
    }
    return part;
}

/* Read a multiple of LANES entries, at most BLOCK. `type` and `what` are constants where this is expanded. */
#define READ_BLOCK(REAL, AT)                                                                          \
    REAL sum[LANES] = {0}, square[LANES] = {0}, low[LANES], high[LANES], zeros[LANES] = {0}, inside[LANES] = {0}; \
    const REAL from = (REAL)wanted.low, to = (REAL)wanted.high;                                       \
    for (int j = 0; j < LANES; j++) low[j] = high[j] = AT(data, j, type);                             \
    for (int64_t i = 0; i < entries; i += LANES) {                                                    \
        for (int k = 0; k < LANES * SIZES[type]; k += 64) ASK_FOR(data + i * SIZES[type] + k + FORWARD); \
        for (int j = 0; j < LANES; j++) {                                                             \
            REAL x = AT(data, i + j, type);                                                           \
            square[j] += x * x;                                                                       \
            if (what & SUM) sum[j] += x;                                                              \
            if (what & RANGE) low[j] = x < low[j] ? x : low[j], high[j] = x > high[j] ? x : high[j];  \
            if (what & ZEROS) zeros[j] += x == 0 ? (REAL)1 : (REAL)0;                                 \
            if (what & INSIDE) inside[j] += (x > from) & (x < to) ? (REAL)1 : (REAL)0;                \
        }                                                                                             \
    }                                                                                                 \
    Part part = NOTHING;                                                                              \
    for (int j = 0; j < LANES; j++) {                                                                 \
        part.sum += sum[j], part.square += square[j], part.zeros += zeros[j], part.inside += inside[j]; \
        part.low = low[j] < part.low ? low[j] : part.low;                                             \
        part.high = high[j] > part.high ? high[j] : part.high;                                        \
    }                                                                                                 \
    return part;

INLINE Part block_of_floats(const char *data, int64_t entries, int type, int what, Wanted wanted) {
    READ_BLOCK(float, float_at)
}

INLINE Part block_of_doubles(const char *data, int64_t entries, int type, int what, Wanted wanted) {
    READ_BLOCK(double, double_at)
}

INLINE Part blocks(const char *data, int64_t entries, int type, int wide, int what, Wanted wanted) {
    Part whole = NOTHING;
    for (int64_t i = 0; i < entries; i += BLOCK) {
        int64_t size = entries - i < BLOCK ? entries - i : BLOCK;
        const char *block = data + i * SIZES[type];
        Part part = wide ? block_of_doubles(block, size, type, what, wanted)
                         : block_of_floats(block, size, type, what, wanted);
        join(&whole, &part);
    }
    return whole;
}

#define CASE(TYPE, WIDE, WHAT) \
    case (TYPE) * 32 + (WIDE) * 16 + (WHAT): return blocks(data, entries, TYPE, WIDE, WHAT, wanted);
#define CASES(TYPE, WIDE)                                                                   \
    CASE(TYPE, WIDE, SUM | RANGE | ZEROS | INSIDE) CASE(TYPE, WIDE, SUM | RANGE | ZEROS)    \
    CASE(TYPE, WIDE, RANGE | ZEROS) CASE(TYPE, WIDE, INSIDE) CASE(TYPE, WIDE, 0)

VECTORISED static Part read_blocks(const char *data, int64_t entries, int type, int wide, Wanted wanted) {
    switch (type * 32 + wide * 16 + wanted.what) {
        CASES(FLOAT32, 0) CASES(FLOAT32, 1) CASES(BFLOAT16, 0) CASES(BFLOAT16, 1) CASES(FLOAT64, 1)
        default: return read_carefully(data, entries, type, wanted);
    }
}

/* Read consecutive entries: in float if its range and precision suffice, else in doubles, else one by one. */
static Part read_entries(const char *data, int64_t entries, int type, Wanted wanted) {
    int64_t even = entries - entries % LANES;
    Part part = NOTHING;
    if (even) {
        double square = NAN;
        if (type != FLOAT64) {
            part = read_blocks(data, even, type, 0, wanted);
            square = part.square / (double)even;
        }
        if (!(square > SMALLEST * SMALLEST && square < LARGEST * LARGEST)) {
            part = read_blocks(data, even, type, 1, wanted);
            if (!isfinite(part.square)) part = read_carefully(data, even, type, wanted);
        }
    }
    if (even < entries) {
        Part rest = read_carefully(data + even * SIZES[type], entries - even, type, wanted);
        join(&part, &rest);
    }
    return part;
}

static double square_about(const char *data, int64_t entries, int type, double mean) {
    double total = 0;
    for (int64_t i = 0; i < entries; i++) {
        double x = double_at(data, i, type) - mean;
        total += x * x;
    }
    return total;
}

/* Write a result; with entries that are not finite all but their number is NaN. */
static void finish(const Tensor *tensor, Part part, Wanted wanted, double *result) {
    int64_t entries = tensor->entries;
    for (int i = 0; i < RESULT; i++) result[i] = NAN;
    result[NONFINITE] = part.nonfinite;
    if (part.nonfinite > 0 || entries == 0) return;
    double square = part.square / (double)entries;
    result[RMS] = sqrt(square);
    if (wanted.what & SUM) {
        double mean = part.sum / (double)entries, variance = square - mean * mean;
        if (variance < CANCELLATION * square) variance = square_about(tensor->data, entries, tensor->type, mean) / (double)entries;
        result[MEAN] = mean;
        result[STD] = sqrt(variance > 0 ? variance : 0);
    }
    if (wanted.what & RANGE) result[LOW] = part.low, result[HIGH] = part.high;
    if (wanted.what & ZEROS) result[ZERO_SHARE] = part.zeros / (double)entries;
    if (wanted.what & INSIDE) result[INSIDE_SHARE] = part.inside / (double)entries;
}

#ifdef __GNUC__
/* How OpenMP runs a function on its team. torch's own team is borrowed: its threads are awake, and a second team
 * would compete with it for the cores. */
static void (*run_on_team)(void (*)(void *), void *, unsigned, unsigned);
static unsigned team = 1;

typedef struct {
    const Tensor *tensors;
    const Wanted *wanted;
    Part *parts;
    int64_t count, pieces;
    int64_t next; /* the piece that the next free thread takes, the last one first */
} Work;

static int64_t pieces_of(const Tensor *tensor) { return (tensor->entries + PIECE - 1) / PIECE; }

static void take_pieces(void *argument) {
    Work *work = argument;
    int64_t owner = work->count - 1, end = work->pieces, piece;
    while ((piece = __atomic_fetch_sub(&work->next, 1, __ATOMIC_RELAXED)) >= 0) {
        while (piece < end - pieces_of(work->tensors + owner)) end -= pieces_of(work->tensors + owner--);
        const Tensor *tensor = work->tensors + owner;
        int64_t start = (piece - (end - pieces_of(tensor))) * PIECE, left = tensor->entries - start;
        work->parts[piece] = read_entries(tensor->data + start * SIZES[tensor->type], left < PIECE ? left : PIECE,
                                          tensor->type, work->wanted[owner]);
    }
}

/* Read tensors on the team; return 0 if that isn't worth while or there is no memory. */
static int measure_on_team(const Tensor *tensors, const Wanted *wanted, int64_t count, double *results) {
    int64_t pieces = 0, entries = 0, place = 0;
    for (int64_t i = 0; i < count; i++) pieces += pieces_of(tensors + i), entries += tensors[i].entries;
    if (team < 2 || !run_on_team || entries < SHARED) return 0;
    Part *parts = malloc((size_t)pieces * sizeof(Part));
    if (!parts) return 0;
    Work work = {tensors, wanted, parts, count, pieces, pieces - 1};
    run_on_team(take_pieces, &work, team, 0);
    for (int64_t i = 0; i < count; i++) {
        Part whole = NOTHING;
        for (int64_t j = pieces_of(tensors + i); j > 0; j--) join(&whole, &parts[place++]);
        finish(tensors + i, whole, wanted[i], results + i * RESULT);
    }
    free(parts);
    return 1;
}

typedef struct {
    void (*job)(const int64_t *, double *);
    const int64_t *jobs;
    double *results;
    int64_t next;
} Errand;

static void take_jobs(void *argument) {
    Errand *errand = argument;
    int64_t i;
    while ((i = __atomic_fetch_sub(&errand->next, 1, __ATOMIC_RELAXED)) >= 0)
        errand->job(errand->jobs + i * JOB, errand->results ? errand->results + i : NULL);
}

/* Do jobs, each by itself, on the team if that is worth while. */
void do_jobs(void (*job)(const int64_t *, double *), const int64_t *jobs, double *results, int64_t count) {
    int64_t work = 0;
    for (int64_t i = 0; i < count; i++)
        work += jobs[i * JOB + COUNT] ? jobs[i * JOB + COUNT] * APART : jobs[i * JOB + ENTRIES];
    Errand errand = {job, jobs, results, count - 1};
    if (team < 2 || !run_on_team || work < SHARED)
        take_jobs(&errand);
    else
        run_on_team(take_jobs, &errand, team, 0);
}
#else
void do_jobs(void (*job)(const int64_t *, double *), const int64_t *jobs, double *results, int64_t count) {
    for (int64_t i = 0; i < count; i++) job(jobs + i * JOB, results ? results + i : NULL);
}

static int measure_on_team(const Tensor *tensors, const Wanted *wanted, int64_t count, double *results) { return 0; }
#endif

/* Read tensors, the last first: what was used last is the most likely to lie in a cache, and what an optimizer will
 * use first is then read last. */
void measure_all(const Tensor *tensors, const Wanted *wanted, int64_t count, double *results) {
    if (measure_on_team(tensors, wanted, count, results)) return;
    for (int64_t i = count - 1; i >= 0; i--) {
        const Tensor *tensor = tensors + i;
        Part part = read_entries(tensor->data, tensor->entries, tensor->type, wanted[i]);
        finish(tensor, part, wanted[i], results + i * RESULT);
    }
}

void borrow_team(void *address, long size) {
#ifdef __GNUC__
    memcpy(&run_on_team, &address, sizeof address);
    team = size > 1 ? (unsigned)size : 1;
#endif
}
