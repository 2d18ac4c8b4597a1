/* Statistics of tensors in host memory, each tensor read once.
 *
 * torch reads a tensor anew for every number, and each call costs more than the arithmetic on a small tensor. Here
 * one pass gives all numbers, as fast as memory delivers. Entries are added in float lanes, which the compiler turns
 * into vector instructions, and every BLOCK entries into doubles; what leaves the range of float is read again in
 * doubles. Nothing is written but the caller's own buffers.
 *
 * A job is six int64: address, entries, type, address of a sample's lines, their number (0: all entries), address of
 * the entries that were kept. A line is LINE entries long. A result is eight doubles: see `finish`.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
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

enum { FLOAT32, FLOAT64, BFLOAT16 };
enum { SUM = 1, RANGE = 2, ZEROS = 4, INSIDE = 8 };
enum { ADDRESS, ENTRIES, TYPE, LINES, COUNT, KEPT, JOB };
enum { MEAN, STD, RMS, LOW, HIGH, ZERO_SHARE, NONFINITE, INSIDE_SHARE, RESULT };
enum { COSINE = RESULT, OWNER, SIZE, ROW };
enum { SAMPLES = 1, TOKENS };                /* between which rows the cosine is measured; 0: none */
enum { STEADY = 1, MOVED };                  /* or UNREADABLE: what became of tensors that were gathered */
enum { UNREADABLE, READ, FULL, UNPLACED };   /* what became of a tensor: no rows left, no place for marks */

#define LINE 16
/* Tensors of more axes are not read in place. */
#define AXES 16
/* Reading fewer entries takes less time than letting other threads run meanwhile. */
#define SHORT (1 << 14)
#define LANES 32
/* Of an output so many rows, and of a long row so many lines, tell how alike rows are. */
#define COSINE_ROWS 16
#define COSINE_LINES 64
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
    double sum, square, low, high, zeros, inside, nonfinite;
} Part;

typedef struct {
    int what;
    double low, high;
} Wanted;

typedef struct {
    const char *data;
    int64_t entries;
    int type;
} Tensor;

/* How a layer's tensors are read: what of them, the limits of INSIDE, between what the cosine is measured, along
 * which axis units are marked (-1: none), how many there are, where their marks begin, and whether any were made. */
typedef struct {
    int64_t what;
    double low, high;
    int64_t between, axis, units, start, marked;
} Reading;

/* Where readings are written: addresses of rows and marks, how many rows there are and how many are used. A row is a
 * result and what follows it below. */
typedef struct {
    int64_t rows, room, used, marks;
} Ledger;

typedef struct {
    int axes;
    int64_t sizes[AXES];
} Shape;

static const Part NOTHING = {0, 0, INFINITY, -INFINITY, 0, 0, 0};
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
static void do_jobs(void (*job)(const int64_t *, double *), const int64_t *jobs, double *results, int64_t count) {
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
static void do_jobs(void (*job)(const int64_t *, double *), const int64_t *jobs, double *results, int64_t count) {
    for (int64_t i = 0; i < count; i++) job(jobs + i * JOB, results ? results + i : NULL);
}

static int measure_on_team(const Tensor *tensors, const Wanted *wanted, int64_t count, double *results) { return 0; }
#endif

/* Read tensors, the last first: what was used last is the most likely to lie in a cache, and what an optimizer will
 * use first is then read last. */
static void measure_all(const Tensor *tensors, const Wanted *wanted, int64_t count, double *results) {
    if (measure_on_team(tensors, wanted, count, results)) return;
    for (int64_t i = count - 1; i >= 0; i--) {
        const Tensor *tensor = tensors + i;
        Part part = read_entries(tensor->data, tensor->entries, tensor->type, wanted[i]);
        finish(tensor, part, wanted[i], results + i * RESULT);
    }
}

static void *pointer(PyObject *number) { return PyLong_AsVoidPtr(number); }

/* What is asked of a tensor: attributes, methods, and the objects that answers are compared with. */
enum { DTYPE, LAYOUT, IS_CPU, IS_CONTIGUOUS, IS_NEG, NUMEL, DATA_PTR, SHAPE, NAMES };
static const char *const SPELLED[] = {"dtype", "layout", "is_cpu", "is_contiguous", "is_neg", "numel", "data_ptr",
                                      "shape"};
static PyObject *names[NAMES], *dtypes[3], *classes[2], *strided;

/* Return whether an attribute is an object: 1, 0, or -1 with an exception. */
static int has(PyObject *tensor, int name, PyObject *expected) {
    PyObject *value = PyObject_GetAttr(tensor, names[name]);
    Py_XDECREF(value);
    return value ? value == expected : -1;
}

static int answers_true(PyObject *tensor, int name) {
    PyObject *value = PyObject_CallMethodObjArgs(tensor, names[name], NULL);
    Py_XDECREF(value);
    return value ? value == Py_True : -1;
}

static int64_t number_of(PyObject *tensor, int name) {
    PyObject *value = PyObject_CallMethodObjArgs(tensor, names[name], NULL);
    int64_t number = value ? PyLong_AsLongLong(value) : -1;
    Py_XDECREF(value);
    return number;
}

static char *address_of(PyObject *tensor) {
    PyObject *value = PyObject_CallMethodObjArgs(tensor, names[DATA_PTR], NULL);
    char *address = value ? pointer(value) : NULL;
    Py_XDECREF(value);
    return address;
}

/* Return whether a tensor can be read where it lies: 1, 0, or -1 with an exception. */
static int look_at(PyObject *object, Tensor *tensor) {
    PyObject *class = (PyObject *)Py_TYPE(object);
    if (class != classes[0] && class != classes[1]) return 0;
    PyObject *dtype = PyObject_GetAttr(object, names[DTYPE]);
    if (!dtype) return -1;
    for (tensor->type = 0; tensor->type < 3 && dtypes[tensor->type] != dtype;) tensor->type++;
    Py_DECREF(dtype);
    if (tensor->type == 3) return 0;
    int fits = has(object, IS_CPU, Py_True);
    if (fits == 1) fits = has(object, LAYOUT, strided);
    if (fits == 1) fits = answers_true(object, IS_CONTIGUOUS);
    if (fits == 1) fits = (int)!answers_true(object, IS_NEG);
    if (fits != 1 || PyErr_Occurred()) return PyErr_Occurred() ? -1 : 0;
    tensor->entries = number_of(object, NUMEL);
    tensor->data = address_of(object);
    /* a shard that is not gathered has a size, but no memory */
    return PyErr_Occurred() ? -1 : tensor->entries > 0 && tensor->data;
}

/* Look up the sizes of a tensor's axes: 1, 0 if there are too many, or -1 with an exception. */
static int shape_of(PyObject *object, Shape *shape) {
    PyObject *sizes = PyObject_GetAttr(object, names[SHAPE]);
    Py_ssize_t axes = sizes ? PyTuple_Size(sizes) : -1;
    shape->axes = (int)axes;
    for (Py_ssize_t i = 0; i < axes && i < AXES; i++) shape->sizes[i] = PyLong_AsLongLong(PyTuple_GetItem(sizes, i));
    Py_XDECREF(sizes);
    return PyErr_Occurred() ? -1 : axes <= AXES;
}

/* know(Tensor, Parameter, float32, float64, bfloat16, strided): keep what tensors are compared with. */
static PyObject *know(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 6) return PyErr_Format(PyExc_TypeError, "know takes 6 arguments");
    for (int i = 0; i < NAMES; i++)
        if (!names[i] && !(names[i] = PyUnicode_InternFromString(SPELLED[i]))) return NULL;
    for (int i = 0; i < 2; i++) classes[i] = Py_NewRef(arguments[i]);
    for (int i = 0; i < 3; i++) dtypes[i] = Py_NewRef(arguments[2 + i]);
    strided = Py_NewRef(arguments[5]);
    return Py_NewRef(Py_None);
}

/* point(tensors, jobs): write where the tensors of a list lie into jobs; return whether all can be read there. */
static PyObject *point(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 2) return PyErr_Format(PyExc_TypeError, "point takes 2 arguments");
    int64_t *jobs = pointer(arguments[1]);
    Py_ssize_t count = PyErr_Occurred() ? -1 : PyList_Size(arguments[0]);
    if (count < 0) return NULL;
    for (Py_ssize_t i = 0; i < count; i++, jobs += JOB) {
        Tensor tensor = {NULL, 0, 0};
        PyObject *object = PyList_GetItem(arguments[0], i);
        int fits = object ? look_at(object, &tensor) : -1;
        if (fits < 0) return NULL;
        if (!fits) return Py_NewRef(Py_False);
        jobs[ADDRESS] = (int64_t)(intptr_t)tensor.data, jobs[ENTRIES] = tensor.entries, jobs[TYPE] = tensor.type;
    }
    return Py_NewRef(Py_True);
}

/* gather(dictionaries, name, jobs): write where the tensors that a list's dictionaries hold under a name lie; return
 * whether that is as it was, or that not all can be read in place. */
static PyObject *gather(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 3) return PyErr_Format(PyExc_TypeError, "gather takes 3 arguments");
    int64_t *jobs = pointer(arguments[2]);
    Py_ssize_t count = PyErr_Occurred() ? -1 : PyList_Size(arguments[0]);
    if (count < 0) return NULL;
    int outcome = STEADY;
    for (Py_ssize_t i = 0; i < count; i++, jobs += JOB) {
        Tensor tensor = {NULL, 0, 0};
        PyObject *holder = PyList_GetItem(arguments[0], i);
        PyObject *object = PyDict_Check(holder) ? PyDict_GetItemWithError(holder, arguments[1]) : NULL;
        int known = object && (PyObject *)Py_TYPE(object) == classes[0] && jobs[ADDRESS];
        if (known && jobs[ADDRESS] == (int64_t)(intptr_t)address_of(object)) continue;
        int fits = object && !PyErr_Occurred() ? look_at(object, &tensor) : 0;
        if (fits < 0 || PyErr_Occurred()) return NULL;
        if (!fits) {
            jobs[ADDRESS] = 0; /* what comes next time has moved */
            return PyLong_FromLong(UNREADABLE);
        }
        outcome = MOVED;
        jobs[ADDRESS] = (int64_t)(intptr_t)tensor.data, jobs[ENTRIES] = tensor.entries, jobs[TYPE] = tensor.type;
    }
    return PyLong_FromLong(outcome);
}

/* measure_jobs(what, jobs, highs, results, count): `highs` is 0, or the address of an upper limit for each job. */
static PyObject *measure_jobs(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 5) return PyErr_Format(PyExc_TypeError, "measure_jobs takes 5 arguments");
    int what = (int)PyLong_AsLong(arguments[0]);
    const int64_t *jobs = pointer(arguments[1]);
    const double *highs = pointer(arguments[2]);
    double *results = pointer(arguments[3]);
    int64_t count = PyLong_AsLongLong(arguments[4]);
    if (PyErr_Occurred()) return NULL;
    Tensor *tensors = malloc((size_t)(count + 1) * (sizeof(Tensor) + sizeof(Wanted)));
    if (!tensors) return PyErr_NoMemory();
    Wanted *wanted = (Wanted *)(tensors + count);
    for (int64_t i = 0; i < count; i++) {
        const int64_t *job = jobs + i * JOB;
        tensors[i] = (Tensor){(const char *)(intptr_t)job[ADDRESS], job[ADDRESS] ? job[ENTRIES] : 0, (int)job[TYPE]};
        wanted[i] = (Wanted){what, -INFINITY, highs ? highs[i] : INFINITY};
    }
    Py_BEGIN_ALLOW_THREADS
    measure_all(tensors, wanted, count, results);
    Py_END_ALLOW_THREADS
    free(tensors);
    return Py_NewRef(Py_None);
}

/* use_team(address, size): read on so many threads by the function that runs OpenMP's team; 0: by this thread only. */
static PyObject *use_team(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 2) return PyErr_Format(PyExc_TypeError, "use_team takes 2 arguments");
    void *address = pointer(arguments[0]);
    long size = PyLong_AsLong(arguments[1]);
    if (PyErr_Occurred()) return NULL;
#ifdef __GNUC__
    memcpy(&run_on_team, &address, sizeof address);
    team = size > 1 ? (unsigned)size : 1;
#endif
    return Py_NewRef(Py_None);
}

static void keep_job(const int64_t *job, double *unused) {
    const int64_t *lines = (const int64_t *)(intptr_t)job[LINES];
    const char *from = (const char *)(intptr_t)job[ADDRESS];
    char *to = (char *)(intptr_t)job[KEPT];
    size_t size = (size_t)SIZES[job[TYPE]], line = LINE * size;
    if (!from || !to) return;
    if (!job[COUNT]) memcpy(to, from, (size_t)job[ENTRIES] * size);
    for (int64_t j = 0; j < job[COUNT]; j++) {
        if (j + AHEAD < job[COUNT]) ASK_FOR(from + lines[j + AHEAD] * line);
        memcpy(to + j * line, from + lines[j] * line, line);
    }
}

/* keep(jobs, count): copy the entries of every job, or its sampled lines, to where they are kept, if anywhere. */
static PyObject *keep(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 2) return PyErr_Format(PyExc_TypeError, "keep takes 2 arguments");
    const int64_t *jobs = pointer(arguments[0]);
    int64_t count = PyLong_AsLongLong(arguments[1]);
    if (PyErr_Occurred()) return NULL;
    do_jobs(keep_job, jobs, NULL, count);
    return Py_NewRef(Py_None);
}

VECTORISED static double square_of_change(const char *now, const char *before, int64_t entries, int type) {
    double total[8] = {0}, whole = 0;
    if (type == FLOAT32)
        for (int64_t i = 0; i + 8 <= entries; i += 8)
            for (int j = 0; j < 8; j++) {
                double change = (double)((const float *)now)[i + j] - ((const float *)before)[i + j];
                total[j] += change * change;
            }
    for (int64_t i = type == FLOAT32 ? entries - entries % 8 : 0; i < entries; i++) {
        double change = double_at(now, i, type) - double_at(before, i, type);
        whole += change * change;
    }
    for (int j = 0; j < 8; j++) whole += total[j];
    return whole;
}

static void change_job(const int64_t *job, double *result) {
    const int64_t *lines = (const int64_t *)(intptr_t)job[LINES];
    const char *now = (const char *)(intptr_t)job[ADDRESS], *before = (const char *)(intptr_t)job[KEPT];
    int type = (int)job[TYPE], line = LINE * SIZES[type];
    *result = NAN;
    if (!now) return;
    double total = job[COUNT] ? 0 : square_of_change(now, before, job[ENTRIES], type);
    for (int64_t j = 0; j < job[COUNT]; j++) {
        if (j + AHEAD < job[COUNT]) ASK_FOR(now + lines[j + AHEAD] * line);
        total += square_of_change(now + lines[j] * line, before + j * line, LINE, type);
    }
    *result = sqrt(total);
}

/* change(jobs, results, count): write the norm of every job's change since its entries were kept. */
static PyObject *change(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 3) return PyErr_Format(PyExc_TypeError, "change takes 3 arguments");
    const int64_t *jobs = pointer(arguments[0]);
    double *results = pointer(arguments[1]);
    int64_t count = PyLong_AsLongLong(arguments[2]);
    if (PyErr_Occurred()) return NULL;
    do_jobs(change_job, jobs, results, count);
    return Py_NewRef(Py_None);
}

INLINE int is_any_positive(const char *data, int64_t entries, int type) {
    for (int64_t i = 0; i < entries; i += 256) {
        int any = 0, size = (int)(entries - i < 256 ? entries - i : 256);
        for (int j = 0; j < size; j++)
            any |= type == FLOAT64 ? double_at(data, i + j, type) > 0 : float_at(data, i + j, type) > 0;
        if (any) return 1;
    }
    return 0;
}

INLINE int are_all_live(const char *live, int64_t units) {
    int all = 1;
    for (int64_t i = 0; i < units; i++) all &= live[i];
    return all;
}

/* Units side by side: whole rows are compared, and now and then it is asked whether any unit is left. */
INLINE void mark_in_rows(const char *data, int64_t rows, int64_t units, int type, char *live) {
    for (int64_t i = 0; i < rows; i++, data += units * SIZES[type]) {
        for (int64_t j = 0; j < units; j++)
            live[j] |= type == FLOAT64 ? double_at(data, j, type) > 0 : float_at(data, j, type) > 0;
        if (i % 16 == 15 && are_all_live(live, units)) return;
    }
}

/* Every unit has `inner` entries in a row, such as a channel of an image: those known to be alive are skipped. */
INLINE void mark_in_planes(const char *data, int64_t outer, int64_t units, int64_t inner, int type, char *live) {
    for (int64_t i = 0; i < outer; i++) {
        for (int64_t j = 0; j < units; j++, data += inner * SIZES[type])
            if (!live[j]) live[j] = (char)is_any_positive(data, inner, type);
        if (i % 4 == 3 && are_all_live(live, units)) return;
    }
}

#define MARK(TYPE)                                                                  \
    if (type == TYPE && inner == 1) mark_in_rows(data, outer, units, TYPE, live);   \
    if (type == TYPE && inner != 1) mark_in_planes(data, outer, units, inner, TYPE, live);

VECTORISED static void mark(const char *data, int64_t outer, int64_t units, int64_t inner, int type, char *live) {
    MARK(FLOAT32) MARK(FLOAT64) MARK(BFLOAT16)
}

/* Mark the units, of a layer that has some, that are above zero anywhere. */
static void mark_units(const Ledger *ledger, Reading *reading, const Tensor *tensor, const Shape *shape) {
    int64_t units = reading->units, inner = 1;
    for (int i = (int)reading->axis + 1; i < shape->axes; i++) inner *= shape->sizes[i];
    if (units == 1) inner = tensor->entries;
    char *live = (char *)(intptr_t)ledger->marks + reading->start;
    mark(tensor->data, tensor->entries / (units * inner), units, inner, tensor->type, live);
    reading->marked = 1;
}

INLINE double square_of(const char *data, int64_t entries, int type) {
    double lanes[8] = {0}, total = 0;
    int64_t whole = entries - entries % 8;
    for (int64_t i = 0; i < whole; i += 8)
        for (int j = 0; j < 8; j++) lanes[j] += double_at(data, i + j, type) * double_at(data, i + j, type);
    for (int64_t i = whole; i < entries; i++) total += double_at(data, i, type) * double_at(data, i, type);
    for (int j = 0; j < 8; j++) total += lanes[j];
    return total;
}

/* Return the mean cosine between different rows of one length, of which COSINE_ROWS are read, evenly spread, and of
 * long rows COSINE_LINES lines: (|sum of normalised rows|^2 - n) / (n (n - 1)). NaN for fewer than two rows that are
 * neither zero nor non-finite. */
INLINE double mean_cosine(const char *data, int64_t rows, int64_t width, int type) {
    int64_t used = rows < COSINE_ROWS ? rows : COSINE_ROWS, lines = 1, line = width;
    if (width > COSINE_LINES * LINE) lines = COSINE_LINES, line = LINE;
    double sum[COSINE_LINES * LINE], square = 0, number = 0;
    memset(sum, 0, (size_t)(lines * line) * sizeof(double));
    for (int64_t i = 0; i < used; i++) {
        const char *row = data + i * (rows / used) * width * SIZES[type];
        double length = 0;
        for (int64_t j = 0; j < lines; j++)
            length += square_of(row + j * (width / lines) * SIZES[type], line, type);
        if (length == 0) continue;
        if (!isfinite(length)) return NAN;
        double scale = 1 / sqrt(length);
        for (int64_t j = 0; j < lines; j++)
            for (int64_t k = 0; k < line; k++)
                sum[j * line + k] += scale * double_at(row, j * (width / lines) + k, type);
        number += 1;
    }
    for (int64_t k = 0; k < lines * line; k++) square += sum[k] * sum[k];
    return number > 1 ? fmin(1, fmax(-1, (square - number) / (number * (number - 1)))) : NAN;
}

VECTORISED static double cosine_of(const char *data, int64_t rows, int64_t width, int type) {
    if (type == FLOAT32) return mean_cosine(data, rows, width, FLOAT32);
    return type == FLOAT64 ? mean_cosine(data, rows, width, FLOAT64) : mean_cosine(data, rows, width, BFLOAT16);
}

/* Return the mean cosine between the rows of a layer's output: whole samples, or the first sample's tokens. */
static double likeness(const Tensor *tensor, const Shape *shape, int64_t between) {
    if (shape->axes < 2) return NAN;
    int64_t samples = shape->sizes[0], width = tensor->entries / samples;
    if (between == SAMPLES) return cosine_of(tensor->data, samples, width, tensor->type);
    int64_t last = shape->sizes[shape->axes - 1];
    return cosine_of(tensor->data, width / last, last, tensor->type);
}

/* note(ledger, reading, owner, tensor): read a tensor at once, into the ledger's next row; return the outcome. */
static PyObject *note(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 4) return PyErr_Format(PyExc_TypeError, "note takes 4 arguments");
    Ledger *ledger = pointer(arguments[0]);
    Reading *reading = pointer(arguments[1]);
    double owner = PyFloat_AsDouble(arguments[2]);
    if (PyErr_Occurred()) return NULL;
    Tensor tensor = {NULL, 0, 0};
    Shape shape = {0};
    int fits = look_at(arguments[3], &tensor);
    if (fits == 1 && (reading->between || reading->axis >= 0)) fits = shape_of(arguments[3], &shape);
    if (fits < 0) return NULL;
    if (!fits) return PyLong_FromLong(UNREADABLE);
    int marks = reading->axis >= 0 && reading->axis < shape.axes;
    if (ledger->used == ledger->room) return PyLong_FromLong(FULL);
    if (marks && shape.sizes[reading->axis] != reading->units) return PyLong_FromLong(UNPLACED);
    double *row = (double *)(intptr_t)ledger->rows + ROW * ledger->used++;
    Wanted wanted = {(int)reading->what, reading->low, reading->high};
    PyThreadState *released = tensor.entries < SHORT ? NULL : PyEval_SaveThread();
    measure_all(&tensor, &wanted, 1, row);
    row[COSINE] = reading->between ? likeness(&tensor, &shape, reading->between) : NAN;
    row[OWNER] = owner, row[SIZE] = (double)tensor.entries;
    if (marks) mark_units(ledger, reading, &tensor, &shape);
    if (released) PyEval_RestoreThread(released);
    return PyLong_FromLong(READ);
}

#define METHOD(NAME) {#NAME, (PyCFunction)(void (*)(void))NAME, METH_FASTCALL, NULL}
static PyMethodDef METHODS[] = {METHOD(know), METHOD(use_team), METHOD(note), METHOD(point), METHOD(gather),
                                METHOD(measure_jobs),
                                METHOD(keep), METHOD(change), {NULL, NULL, 0, NULL}};
static PyModuleDef_Slot SLOTS[] = {{0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_passes", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__passes(void) { return PyModuleDef_Init(&MODULE); }
