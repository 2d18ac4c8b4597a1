/* Entries of tensors in host memory: how they are read, what of them is wanted, and how threads share the work. */
#ifndef GRADSCOPE_ENTRIES_H
#define GRADSCOPE_ENTRIES_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORISED
#endif
#if defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

/* A job is six int64: address, entries, type, address of the places where a sample's lines begin, their number (0: all
 * entries), address of the entries that were kept. A line is LINE entries long. A result is eight doubles: see `finish`. */
enum { FLOAT32, FLOAT64, BFLOAT16 };
enum { SUM = 1, RANGE = 2, ZEROS = 4, INSIDE = 8 };
enum { ADDRESS, ENTRIES, TYPE, LINES, COUNT, KEPT, JOB };
enum { MEAN, STD, RMS, LOW, HIGH, ZERO_SHARE, NONFINITE, INSIDE_SHARE, RESULT };

#define LINE 16
/* Memory is asked for what comes so many bytes later in a row, or so many lines later where lines lie apart: more
 * than processors ask for by themselves, which almost doubles what one thread reads in a second. */
#define FORWARD (1 << 14)
#define AHEAD 16
#if defined(__GNUC__)
#define ASK_FOR(ADDRESS) __builtin_prefetch(ADDRESS)
#else
#define ASK_FOR(ADDRESS) ((void)0)
#endif

typedef struct {
    int what;
    double low, high;
} Wanted;

typedef struct {
    const char *data;
    int64_t entries;
    int type;
} Tensor;

static const int SIZES[] = {4, 8, 2};

INLINE float float_at(const char *data, int64_t index, int type) {
    if (type == BFLOAT16) {
        uint32_t bits = (uint32_t)((const uint16_t *)data)[index] << 16;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    return ((const float *)data)[index];
}

INLINE double double_at(const char *data, int64_t index, int type) {
    return type == FLOAT64 ? ((const double *)data)[index] : float_at(data, index, type);
}

/* Read tensors, each into a result. */
void measure_all(const Tensor *tensors, const Wanted *wanted, int64_t count, double *results);

/* Do jobs, each by itself; `results` has one double a job, or is NULL. */
void do_jobs(void (*job)(const int64_t *, double *), const int64_t *jobs, double *results, int64_t count);

/* Share work among so many threads by the function at an address, which runs OpenMP's team; NULL: by none. */
void borrow_team(void *address, long size);

#endif
