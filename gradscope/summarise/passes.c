/* The compiled passes as Python calls them: where tensors lie, and what is read there. entries.c does the reading.
 * Nothing is written but the caller's own buffers.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "entries.h"

enum { COSINE = RESULT, SIZE, ALIKE, ROW };  /* ALIKE: how many of SIZE entries have a cosine */
enum { SAMPLES = 1, TOKENS };                /* between which rows the cosine is measured; 0: none */
enum { STEADY = 1, MOVED };                  /* or UNREADABLE: what became of tensors that were gathered */
enum { UNREADABLE, READ, UNPLACED };         /* what became of a tensor: no place for its marks */

/* Tensors of more axes are not read in place. */
#define AXES 16
/* Reading fewer entries takes less time than letting other threads run meanwhile. */
#define SHORT (1 << 14)
/* Of an output so many rows, and of a long row so many lines, tell how alike rows are. */
#define COSINE_ROWS 16
#define COSINE_LINES 64

/* How a layer's tensors are read: what of them, the limits of INSIDE, between what the cosine is measured, along
 * which axis units are marked (-1: none), how many there are, where their marks begin, and whether any were made. */
typedef struct {
    int64_t what;
    double low, high;
    int64_t between, axis, units, start, marked;
} Reading;

/* Where readings are written: addresses of marks and of one row an owner, a result and what follows it above. */
typedef struct {
    int64_t rows, marks;
} Ledger;

typedef struct {
    int axes;
    int64_t sizes[AXES];
} Shape;

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
    borrow_team(address, size);
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
        if (j + AHEAD < job[COUNT]) ASK_FOR(from + lines[j + AHEAD] * size);
        memcpy(to + j * line, from + lines[j] * size, line);
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
    int type = (int)job[TYPE], size = SIZES[type];
    *result = NAN;
    if (!now) return;
    double total = job[COUNT] ? 0 : square_of_change(now, before, job[ENTRIES], type);
    for (int64_t j = 0; j < job[COUNT]; j++) {
        if (j + AHEAD < job[COUNT]) ASK_FOR(now + lines[j + AHEAD] * size);
        total += square_of_change(now + lines[j] * size, before + j * LINE * size, LINE, type);
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

INLINE double mean_of(double one, double other, double share) { return one + share * (other - one); }

/* Return the mean square of a deviation and of its mean's distance from a common mean. */
INLINE double spread(const double *row, double mean) {
    return row[STD] * row[STD] + (row[MEAN] - mean) * (row[MEAN] - mean);
}

/* Add a call's row to those of the calls before, as if their entries had been read at once. What is NaN in either, for
 * entries that aren't finite, is NaN; but a cosine is the mean of those that there are. */
static void merge(double *row, const double *call) {
    double share = call[SIZE] / (row[SIZE] + call[SIZE]), mean = mean_of(row[MEAN], call[MEAN], share);
    row[STD] = sqrt(mean_of(spread(row, mean), spread(call, mean), share));
    row[MEAN] = mean;
    row[RMS] = sqrt(mean_of(row[RMS] * row[RMS], call[RMS] * call[RMS], share));
    row[LOW] = isnan(row[LOW]) || call[LOW] > row[LOW] ? row[LOW] : call[LOW];
    row[HIGH] = isnan(row[HIGH]) || call[HIGH] < row[HIGH] ? row[HIGH] : call[HIGH];
    row[ZERO_SHARE] = mean_of(row[ZERO_SHARE], call[ZERO_SHARE], share);
    row[INSIDE_SHARE] = mean_of(row[INSIDE_SHARE], call[INSIDE_SHARE], share);
    row[NONFINITE] += call[NONFINITE];
    if (!row[ALIKE]) row[COSINE] = call[COSINE];
    else if (call[ALIKE]) row[COSINE] = mean_of(row[COSINE], call[COSINE], call[ALIKE] / (row[ALIKE] + call[ALIKE]));
    row[ALIKE] += call[ALIKE];
    row[SIZE] += call[SIZE];
}

/* note(ledger, reading, owner, tensor, cosine): read a tensor at once, into its owner's row; return the outcome. The
 * cosine is that of a tensor whose own isn't to be measured. */
static PyObject *note(PyObject *module, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 5) return PyErr_Format(PyExc_TypeError, "note takes 5 arguments");
    Ledger *ledger = pointer(arguments[0]);
    Reading *reading = pointer(arguments[1]);
    int64_t owner = PyLong_AsLongLong(arguments[2]);
    double call[ROW] = {0}, cosine = PyFloat_AsDouble(arguments[4]);
    if (PyErr_Occurred()) return NULL;
    Tensor tensor = {NULL, 0, 0};
    Shape shape = {0};
    int fits = look_at(arguments[3], &tensor);
    if (fits == 1 && (reading->between || reading->axis >= 0)) fits = shape_of(arguments[3], &shape);
    if (fits < 0) return NULL;
    if (!fits) return PyLong_FromLong(UNREADABLE);
    int marks = reading->axis >= 0 && reading->axis < shape.axes;
    if (marks && shape.sizes[reading->axis] != reading->units) return PyLong_FromLong(UNPLACED);
    Wanted wanted = {(int)reading->what, reading->low, reading->high};
    PyThreadState *released = tensor.entries < SHORT ? NULL : PyEval_SaveThread();
    measure_all(&tensor, &wanted, 1, call);
    call[COSINE] = reading->between ? likeness(&tensor, &shape, reading->between) : cosine;
    call[SIZE] = (double)tensor.entries;
    call[ALIKE] = isnan(call[COSINE]) ? 0 : call[SIZE];
    if (marks) mark_units(ledger, reading, &tensor, &shape);
    if (released) PyEval_RestoreThread(released);
    double *row = (double *)(intptr_t)ledger->rows + ROW * owner;
    if (row[SIZE]) merge(row, call);
    else memcpy(row, call, sizeof call);
    return PyLong_FromLong(READ);
}

#define METHOD(NAME) {#NAME, (PyCFunction)(void (*)(void))NAME, METH_FASTCALL, NULL}
static PyMethodDef METHODS[] = {METHOD(know), METHOD(use_team), METHOD(note), METHOD(point), METHOD(gather),
                                METHOD(measure_jobs),
                                METHOD(keep), METHOD(change), {NULL, NULL, 0, NULL}};
static PyModuleDef_Slot SLOTS[] = {{0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_passes", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__passes(void) { return PyModuleDef_Init(&MODULE); }
