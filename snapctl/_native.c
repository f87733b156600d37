/* The compiled core: loops over bytes, words and bits that Python is too slow for.
 *
 * Every function has a twin in Python, in the module that it belongs to. The twin is the reference: tests hold the two
 * together, and it is what runs where this file was not compiled. Nothing here decides anything, keeps anything between
 * two calls but names, or does input or output, but for two loops: one reads, one writes.
 *
 * Whatever the arguments, a call returns or raises. That it does the same as its twin takes arguments as the twin
 * describes them: containers and buffers of just these types, numbers from 0 to 2**64 - 1, shifts and units as a
 * geometry can have them, runs of whole blocks beneath one leaf, bitmaps whose states have one size.
 *
 * The lock of the interpreter is held but while the system reads or writes: nothing else takes long enough to be worth
 * giving it up, and as nothing is declared to the contrary, Python never imports this without such a lock, one for all
 * interpreters. Yet wherever an object is made, looked up or asked for an attribute, other code in Python may run and
 * change lists, dicts and bytearrays. What is read from is therefore held, as a buffer or by a reference, or copied
 * before.
 */

#define _GNU_SOURCE /* for preadv2 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

/* ---- CRC32C (Castagnoli), as of RFC 3720, appendix B.4; bits reflected, as the format and the processors have it ---- */

/* A step of the checksum: `state` before `size` bytes -> state after them. */
typedef uint32_t crc32c_step(uint32_t state, const uint8_t *bytes, size_t size);

/* With PORTABLE_ONLY tests compile what runs where no processor helps. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE_ONLY)
#define HAVE_X86 1
#include <immintrin.h>
#elif defined(__ARM_FEATURE_CRC32) && defined(__AARCH64EL__) && !defined(PORTABLE_ONLY)
#define HAVE_ARM 1
#include <arm_acle.h>
#endif

#ifdef HAVE_ARM

static uint32_t
crc32c_arm(uint32_t state, const uint8_t *bytes, size_t size)
{
    for (; size >= 8; bytes += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        state = __crc32cd(state, word);
    }
    while (size--)
        state = __crc32cb(state, *bytes++);
    return state;
}

static crc32c_step *const crc32c_extend = crc32c_arm;

static void
crc32c_prepare(void)
{
}

#else

#define POLYNOMIAL 0x82F63B78u

/* slices[k][b]: the state that the byte b leaves, k zero bytes later. */
static uint32_t slices[8][256];

static void
prepare_slices(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t state = byte;
        for (int bit = 0; bit < 8; bit++)
            state = (state >> 1) ^ (state & 1 ? POLYNOMIAL : 0);
        slices[0][byte] = state;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = slices[k - 1][byte];
            slices[k][byte] = (before >> 8) ^ slices[0][before & 0xFF];
        }
}

/* Eight bytes at a time: by linearity the state after them is the sum of what each leaves. */
static uint32_t
crc32c_sliced(uint32_t state, const uint8_t *bytes, size_t size)
{
    for (; size >= 8; bytes += 8, size -= 8)
        state = slices[7][bytes[0] ^ (state & 0xFF)] ^ slices[6][bytes[1] ^ (state >> 8 & 0xFF)] ^
                slices[5][bytes[2] ^ (state >> 16 & 0xFF)] ^ slices[4][bytes[3] ^ (state >> 24)] ^
                slices[3][bytes[4]] ^ slices[2][bytes[5]] ^ slices[1][bytes[6]] ^ slices[0][bytes[7]];
    while (size--)
        state = (state >> 8) ^ slices[0][(state ^ *bytes++) & 0xFF];
    return state;
}

static crc32c_step *crc32c_extend = crc32c_sliced;

#ifdef HAVE_X86

/* The instruction takes a word per cycle, but needs three cycles for its result: three streams keep it busy. */
#define MOST_WORDS 512

/* shifts[w]: x^(64w - 33) modulo the polynomial, which moves a state past w words: see crc32c_x86. */
static uint32_t shifts[2 * MOST_WORDS + 1];

__attribute__((target("sse4.2"))) static void
prepare_shifts(void)
{
    shifts[1] = 1; /* x^31, reflected */
    for (int w = 2; w <= 2 * MOST_WORDS; w++)
        shifts[w] = (uint32_t)_mm_crc32_u64(0, shifts[w - 1]);
}

static inline uint64_t
word_at(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, 8);
    return word;
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t
crc32c_x86(uint32_t state, const uint8_t *bytes, size_t size)
{
    while (size >= 192) {
        size_t words = size / 24 < MOST_WORDS ? size / 24 : MOST_WORDS;
        size_t stride = 8 * words;
        uint64_t first = state, second = 0, third = 0;
        for (const uint8_t *end = bytes + stride; bytes < end; bytes += 8) {
            first = _mm_crc32_u64(first, word_at(bytes));
            second = _mm_crc32_u64(second, word_at(bytes + stride));
            third = _mm_crc32_u64(third, word_at(bytes + 2 * stride));
        }
        /* A product of two reflected states, taken as a reflected word, is x times theirs, and the instruction
         * multiplies a word by x^32: x^(64w - 33) times both is the shift by w words. */
        __m128i one = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)first), _mm_cvtsi32_si128((int)shifts[2 * words]), 0);
        __m128i two = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)second), _mm_cvtsi32_si128((int)shifts[words]), 0);
        uint64_t both = (uint64_t)_mm_cvtsi128_si64(_mm_xor_si128(one, two));
        state = (uint32_t)(_mm_crc32_u64(0, both) ^ third);
        bytes += 2 * stride;
        size -= 3 * stride;
    }
    for (; size >= 8; bytes += 8, size -= 8)
        state = (uint32_t)_mm_crc32_u64(state, word_at(bytes));
    while (size--)
        state = _mm_crc32_u8(state, *bytes++);
    return state;
}

#endif /* HAVE_X86 */

/* Choose for this processor; every interpreter that imports the module chooses alike. */
static void
crc32c_prepare(void)
{
#ifdef HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul")) {
        prepare_shifts();
        crc32c_extend = crc32c_x86;
        return;
    }
#endif
    prepare_slices();
}

#endif /* HAVE_ARM */

static inline uint32_t
crc32c(const uint8_t *bytes, size_t size)
{
    return ~crc32c_extend(~UINT32_C(0), bytes, size);
}

/* ---- What comes from Python and goes there --------------------------------------------------------------------- */

/* Check arguments by position, a letter each: o any object, d a dict, l a list, a a bytearray, b bytes; and, with a
 * pointer that the number goes to: s a shift, c the units of a block, u any uint64_t, i any int64_t.
 * 0, or -1 after an exception. */
static int
check(const char *name, const char *letters, PyObject *const *args, Py_ssize_t nargs, ...)
{
    int fits = nargs == (Py_ssize_t)strlen(letters);
    va_list numbers;
    va_start(numbers, nargs);
    for (Py_ssize_t i = 0; fits && i < nargs; i++) {
        switch (letters[i]) {
        case 'd': fits = PyDict_Check(args[i]); break;
        case 'l': fits = PyList_Check(args[i]); break;
        case 'a': fits = PyByteArray_Check(args[i]); break;
        case 'b': fits = PyBytes_Check(args[i]); break;
        case 'i': *va_arg(numbers, int64_t *) = PyLong_AsLongLong(args[i]); break;
        case 'u': *va_arg(numbers, uint64_t *) = PyLong_AsUnsignedLongLong(args[i]); break;
        case 's':
        case 'c': {
            long long low = letters[i] == 'c', high = low ? 4096 : 40, number = PyLong_AsLongLong(args[i]);
            *va_arg(numbers, uint64_t *) = number;
            if ((number < low || number > high) && !PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "%s(): no geometry has %lld", name, number);
        }
        }
        if (PyErr_Occurred())
            break;
    }
    va_end(numbers);
    if (!fits)
        PyErr_Format(PyExc_TypeError, "%s() takes %zu arguments, of the types of its twin", name, strlen(letters));
    return PyErr_Occurred() ? -1 : 0;
}

/* Append an object that is ours to give away, or NULL if making it failed; 0, or -1 after an exception. */
static int
append(PyObject *list, PyObject *item)
{
    int result = item == NULL ? -1 : PyList_Append(list, item);
    Py_XDECREF(item);
    return result;
}

static int
append_number(PyObject *list, uint64_t number)
{
    return append(list, PyLong_FromUnsignedLongLong(number));
}

/* A tuple of two objects that are ours to give away, or NULL if making one of them failed. */
static PyObject *
pair(PyObject *first, PyObject *second)
{
    PyObject *found = first && second ? PyTuple_Pack(2, first, second) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(second);
    return found;
}

/* Copy the numbers of a list; NULL after an exception. */
static uint64_t *
read_numbers(PyObject *list, Py_ssize_t *size)
{
    uint64_t *numbers = PyMem_New(uint64_t, PyList_GET_SIZE(list) + 1);
    if (numbers == NULL)
        return (uint64_t *)PyErr_NoMemory();
    *size = PyList_GET_SIZE(list);
    for (Py_ssize_t i = 0; i < *size; i++) {
        numbers[i] = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(list, i));
        if (numbers[i] == UINT64_MAX && PyErr_Occurred()) {
            PyMem_Free(numbers);
            return NULL;
        }
    }
    return numbers;
}

/* Read a pair of a number and a buffer, of a type whose length no code in Python tells; 0, or -1 after an exception. */
static int
read_pair(PyObject *pair, uint64_t *number, uint64_t *length)
{
    PyObject *data = PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 ? PyTuple_GET_ITEM(pair, 1) : NULL;
    if (data == NULL || !(PyMemoryView_Check(data) || PyBytes_CheckExact(data) || PyByteArray_CheckExact(data))) {
        PyErr_SetString(PyExc_TypeError, "not a pair of a number and a buffer");
        return -1;
    }
    *number = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(pair, 0));
    if (*number == UINT64_MAX && PyErr_Occurred())
        return -1;
    Py_ssize_t size = PyObject_Size(data);
    *length = size;
    return size < 0 ? -1 : 0;
}

/* Read a pair of numbers; 0, or -1 after an exception. */
static int
read_range(PyObject *pair, uint64_t *first, uint64_t *second)
{
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
        PyErr_SetString(PyExc_TypeError, "not a pair of numbers");
        return -1;
    }
    *first = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(pair, 0));
    if (*first == UINT64_MAX && PyErr_Occurred())
        return -1;
    *second = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(pair, 1));
    return *second == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

/* ---- Checksums ------------------------------------------------------------------------------------------------- */

/* Read the size of pieces; -1 after an exception. */
static Py_ssize_t
piece_size(PyObject *number)
{
    /* Without an exception to raise, numbers beyond what a size can be count as the largest. */
    Py_ssize_t size = PyNumber_AsSsize_t(number, NULL);
    if (size < 1 && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "size must be at least 1");
    return size < 1 ? -1 : size;
}

/* Append the checksum of each piece of a buffer; 0, or -1 after an exception. */
static int
append_checksums(PyObject *found, PyObject *buffer, Py_ssize_t size)
{
    Py_buffer data;
    if (PyObject_GetBuffer(buffer, &data, PyBUF_SIMPLE) < 0)
        return -1;
    const uint8_t *bytes = data.buf;
    int result = 0;
    for (Py_ssize_t left = data.len; left && !result;) {
        Py_ssize_t length = left < size ? left : size;
        result = append_number(found, crc32c(bytes, (size_t)length));
        bytes += length;
        left -= length;
    }
    PyBuffer_Release(&data);
    return result;
}

/* Twin: snapctl.format.checksum.pure_checksums */
static PyObject *
checksums(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (check("checksums", "oo", args, nargs) < 0)
        return NULL;
    Py_ssize_t size = piece_size(args[1]);
    PyObject *found = size < 0 ? NULL : PyList_New(0);
    if (found != NULL && append_checksums(found, args[0], size) < 0)
        Py_CLEAR(found);
    return found;
}

/* Twin: snapctl.format.checksum.pure_checksums_of */
static PyObject *
checksums_of(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (check("checksums_of", "lo", args, nargs) < 0)
        return NULL;
    Py_ssize_t size = piece_size(args[1]);
    PyObject *found = size < 0 ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *buffer = Py_NewRef(PyList_GET_ITEM(args[0], i));
        if (append_checksums(found, buffer, size) < 0)
            Py_CLEAR(found);
        Py_DECREF(buffer);
    }
    return found;
}

/* ---- Words of tables, bits of the space map, runs of blocks ---------------------------------------------------- */

#define KIND_SHIFT 48
#define PAGE_KIND UINT64_C(1)
#define PAGE_MASK ((UINT64_C(1) << KIND_SHIFT) - 1)

/* A run of whole blocks beneath one leaf. */
typedef struct {
    uint64_t first, count;
    PyObject *data;  /* a reference */
    uint64_t *words; /* of the first block's entry; NULL if the leaf is not there */
    Py_buffer leaf;  /* what holds them, unless the run before does */
} Run;

static void
free_runs(Run *runs, Py_ssize_t size)
{
    for (Py_ssize_t i = 0; runs != NULL && i < size; i++) {
        Py_XDECREF(runs[i].data);
        if (runs[i].leaf.obj != NULL)
            PyBuffer_Release(&runs[i].leaf);
    }
    PyMem_Free(runs);
}

/* Find the words of a leaf and hold them; 0, or -1 after an exception. */
static int
find_leaf(PyObject *leaves, uint64_t leaf_no, uint64_t fanout, Py_buffer *leaf)
{
    PyObject *key = PyLong_FromUnsignedLongLong(leaf_no);
    PyObject *words = key == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(leaves, key));
    Py_XDECREF(key);
    if (words == NULL)
        return PyErr_Occurred() ? -1 : 0;
    int result = PyObject_GetBuffer(words, leaf, PyBUF_WRITABLE);
    Py_DECREF(words);
    if (result == 0 && (leaf->itemsize != 8 || (uint64_t)leaf->len != 16 * fanout || (uintptr_t)leaf->buf % 8)) {
        PyErr_SetString(PyExc_ValueError, "a leaf is an array with two words for each entry");
        result = -1;
    }
    return result;
}

/* Read runs and find their leaves; NULL after an exception. */
static Run *
read_runs(PyObject *list, PyObject *leaves, uint64_t block_shift, uint64_t fanout_shift, Py_ssize_t *size)
{
    Py_ssize_t n = PyList_GET_SIZE(list);
    uint64_t fanout = UINT64_C(1) << fanout_shift, length;
    Run *runs = PyMem_New(Run, n + 1);
    if (runs == NULL)
        return (Run *)PyErr_NoMemory();
    *size = n;
    for (Py_ssize_t i = 0; i < n; i++) {
        runs[i].leaf.obj = NULL;
        runs[i].data = NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *pair = PyList_GET_ITEM(list, i);
        if (read_pair(pair, &runs[i].first, &length) < 0)
            goto failed;
        runs[i].data = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
        runs[i].count = length >> block_shift;
        if (!length || runs[i].count << block_shift != length ||
            (runs[i].first & (fanout - 1)) + runs[i].count > fanout) {
            PyErr_SetString(PyExc_ValueError, "a run is whole blocks beneath one leaf");
            goto failed;
        }
    }
    uint64_t *leaf = NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        uint64_t leaf_no = runs[i].first >> fanout_shift;
        if (!i || leaf_no != runs[i - 1].first >> fanout_shift) {
            if (find_leaf(leaves, leaf_no, fanout, &runs[i].leaf) < 0)
                goto failed;
            leaf = runs[i].leaf.obj == NULL ? NULL : runs[i].leaf.buf;
        }
        runs[i].words = leaf == NULL ? NULL : leaf + 2 * (runs[i].first & (fanout - 1));
    }
    return runs;
failed:
    free_runs(runs, n);
    return NULL;
}

/* What attributes of a bitmap are called, kept by the module. */
typedef struct {
    PyObject *current, *committed;
} Names;

/* The bitmap of the space map that was asked for last, unless that is none. */
typedef struct {
    const Names *names;
    uint64_t index;
    PyObject *current, *committed;
} Bitmap;

static void
forget_bitmap(Bitmap *bitmap)
{
    Py_CLEAR(bitmap->current);
    Py_CLEAR(bitmap->committed);
}

/* Find a bitmap, or none; 0, or -1 after an exception. */
static int
find_bitmap(PyObject *bitmaps, uint64_t index, Bitmap *bitmap)
{
    if (bitmap->current != NULL && bitmap->index == index)
        return 0;
    forget_bitmap(bitmap);
    PyObject *key = PyLong_FromUnsignedLongLong(index);
    PyObject *found = key == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(bitmaps, key));
    Py_XDECREF(key);
    if (found == NULL)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *current = PyObject_GetAttr(found, bitmap->names->current);
    PyObject *committed = current == NULL ? NULL : PyObject_GetAttr(found, bitmap->names->committed);
    Py_DECREF(found);
    *bitmap = (Bitmap){bitmap->names, index, current, committed};
    if (committed != NULL && PyByteArray_Check(current) && PyBytes_Check(committed))
        return 0;
    if (committed != NULL)
        PyErr_SetString(PyExc_TypeError, "a bitmap has a bytearray and bytes");
    forget_bitmap(bitmap);
    return -1;
}

static int
bit_of(const char *bytes, uint64_t bit)
{
    return (unsigned char)bytes[bit >> 3] >> (bit & 7) & 1;
}

/* Whether pages were born in the open transaction; UNKNOWN if that cannot be told here, FAILED after an exception. */
typedef enum { FAILED, UNKNOWN, KEPT, FRESH } Freshness;

static Freshness
are_fresh(Bitmap *bitmap, PyObject *bitmaps, uint64_t page_no, uint64_t units, uint64_t bitmap_shift)
{
    uint64_t bit = page_no & ((UINT64_C(1) << bitmap_shift) - 1), end = bit + units;
    if (find_bitmap(bitmaps, page_no >> bitmap_shift, bitmap) < 0)
        return FAILED;
    if (bitmap->current == NULL || !page_no || end > UINT64_C(1) << bitmap_shift ||
        end > 8 * (uint64_t)PyByteArray_GET_SIZE(bitmap->current) ||
        end > 8 * (uint64_t)PyBytes_GET_SIZE(bitmap->committed))
        return UNKNOWN;
    const char *current = PyByteArray_AS_STRING(bitmap->current), *committed = PyBytes_AS_STRING(bitmap->committed);
    Freshness found = FRESH;
    for (; bit < end; bit++) {
        if (!bit_of(current, bit))
            return UNKNOWN;
        if (bit_of(committed, bit))
            found = KEPT;
    }
    return found;
}

static int
compare(const void *one, const void *other)
{
    uint64_t left = *(const uint64_t *)one, right = *(const uint64_t *)other;
    return (left > right) - (left < right);
}

/* A list of numbers; NULL after an exception. */
static PyObject *
list_of(const uint64_t *numbers, Py_ssize_t size)
{
    PyObject *list = PyList_New(size);
    for (Py_ssize_t i = 0; list != NULL && i < size; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(numbers[i]);
        if (number == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, number);
    }
    return list;
}

/* Twin: snapctl.engine.placing.pure_plan */
static PyObject *
plan(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t block_shift, fanout_shift, bitmap_shift, units;
    if (check("plan", "ddlsssc", args, nargs, &block_shift, &fanout_shift, &bitmap_shift, &units) < 0)
        return NULL;
    PyObject *result = NULL;
    Bitmap bitmap = {.names = PyModule_GetState(module)};
    Py_ssize_t size = 0, blocks = 0, given_up = 0, again = 0, next = 0;
    uint64_t *pages = NULL, *old = NULL, *kept = NULL;
    PyObject *again_data = PyList_New(0), *moved_data = PyList_New(0), *all = NULL, *again_pages = NULL, *given = NULL;
    Run *runs = read_runs(args[2], args[0], block_shift, fanout_shift, &size);
    if (runs == NULL || again_data == NULL || moved_data == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < size; i++)
        blocks += (Py_ssize_t)runs[i].count;
    pages = PyMem_New(uint64_t, blocks + 1);
    old = PyMem_New(uint64_t, blocks + 1);
    kept = PyMem_New(uint64_t, blocks + 1);
    if (pages == NULL || old == NULL || kept == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        const Run *run = &runs[i];
        const uint64_t *words = run->words;
        if (words == NULL)
            goto otherwise;
        uint64_t j = 0, first = words[0] & PAGE_MASK;
        Freshness found = KEPT;
        if (words[0] >> KIND_SHIFT == PAGE_KIND)
            while (++j < run->count && words[2 * j] == words[0] + j * units)
                ;
        if (j == run->count)
            found = are_fresh(&bitmap, args[1], first, run->count * units, bitmap_shift);
        if (found == FAILED)
            goto done;
        if (found == UNKNOWN)
            goto otherwise;
        if (PyList_Append(found == FRESH ? again_data : moved_data, run->data) < 0)
            goto done;
        for (j = 0; j < run->count; j++)
            if (found == FRESH)
                kept[again++] = pages[next++] = first + j * units;
            else {
                pages[next++] = 0;
                if (words[2 * j] >> KIND_SHIFT == PAGE_KIND)
                    old[given_up++] = words[2 * j] & PAGE_MASK;
            }
    }
    qsort(old, given_up, sizeof *old, compare);
    again_pages = list_of(kept, again);
    if (again_pages == NULL)
        goto done;
    memcpy(kept + again, old, (size_t)given_up * sizeof *old);
    qsort(kept, (size_t)(again + given_up), sizeof *kept, compare);
    for (Py_ssize_t i = 1; i < again + given_up; i++)
        if (kept[i] == kept[i - 1])
            goto otherwise;
    if ((all = list_of(pages, blocks)) != NULL && (given = list_of(old, given_up)) != NULL)
        result = PyTuple_Pack(5, all, again_pages, again_data, moved_data, given);
    goto done;
otherwise:
    result = Py_NewRef(Py_None);
done:
    PyMem_Free(pages);
    PyMem_Free(old);
    PyMem_Free(kept);
    Py_XDECREF(again_data);
    Py_XDECREF(moved_data);
    Py_XDECREF(all);
    Py_XDECREF(again_pages);
    Py_XDECREF(given);
    forget_bitmap(&bitmap);
    free_runs(runs, size);
    return result;
}

/* Twin: snapctl.engine.placing.pure_enter */
static PyObject *
enter(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t block_shift, fanout_shift, birth, *pages = NULL, *fresh = NULL, *sums = NULL, blocks = 0;
    if (check("enter", "dllolssu", args, nargs, &block_shift, &fanout_shift, &birth) < 0)
        return NULL;
    PyObject *result = NULL, *given = PySequence_List(args[3]);
    Py_ssize_t size = 0, pages_size, fresh_size, sums_size, taken = 0;
    Run *runs = given == NULL ? NULL : read_runs(args[1], args[0], block_shift, fanout_shift, &size);
    if (runs == NULL || (pages = read_numbers(args[2], &pages_size)) == NULL ||
        (fresh = read_numbers(given, &fresh_size)) == NULL || (sums = read_numbers(args[4], &sums_size)) == NULL)
        goto done;
    int are_there = 1;
    for (Py_ssize_t i = 0; i < size; i++) {
        blocks += runs[i].count;
        are_there &= runs[i].words != NULL;
    }
    for (Py_ssize_t i = 0; i < pages_size; i++)
        if (!pages[i] && taken++ < fresh_size)
            pages[i] = fresh[taken - 1];
    if (blocks != (uint64_t)sums_size || blocks != (uint64_t)pages_size || taken != fresh_size) {
        PyErr_SetString(PyExc_ValueError, "not one page and one checksum for each block");
        goto done;
    }
    if (!are_there) {
        PyErr_SetString(PyExc_KeyError, "a leaf is not there");
        goto done;
    }
    const uint64_t *page = pages, *sum = sums;
    for (Py_ssize_t i = 0; i < size; i++)
        for (uint64_t j = 0; j < runs[i].count; j++) {
            runs[i].words[2 * j] = PAGE_KIND << KIND_SHIFT | *page++;
            runs[i].words[2 * j + 1] = birth | (*sum++ & UINT32_MAX);
        }
    result = Py_NewRef(Py_None);
done:
    free_runs(runs, size);
    Py_XDECREF(given);
    PyMem_Free(pages);
    PyMem_Free(fresh);
    PyMem_Free(sums);
    return result;
}

/* Twin: snapctl.engine.locating.pure_locate_each */
static PyObject *
locate_each(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t block_shift, fanout_shift, units, unit, first_page, end_page, offset, length;
    if (check("locate_each", "dlsscuuu", args, nargs, &block_shift, &fanout_shift, &units, &unit, &first_page,
              &end_page) < 0)
        return NULL;
    uint64_t block_mask = (UINT64_C(1) << block_shift) - 1, fanout = UINT64_C(1) << fanout_shift;
    PyObject *places = PyList_New(0), *sums = PyList_New(0), *result = NULL;
    Py_buffer leaf = {.obj = NULL};
    if (places == NULL || sums == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[1]); i++) {
        if (read_range(PyList_GET_ITEM(args[1], i), &offset, &length) < 0)
            goto done;
        PyObject *place = NULL;
        uint64_t first = offset >> block_shift & (fanout - 1), count = length >> block_shift;
        if (!((offset | length) & block_mask) && count && count <= fanout - first &&
            find_leaf(args[0], offset >> block_shift >> fanout_shift, fanout, &leaf) < 0)
            goto done;
        if (leaf.obj != NULL) {
            const uint64_t *words = (const uint64_t *)leaf.buf + 2 * first;
            uint64_t page_no = words[0] & PAGE_MASK, pages = count * units, j = 0;
            if (words[0] >> KIND_SHIFT == PAGE_KIND && page_no >= first_page && pages <= end_page &&
                page_no <= end_page - pages)
                while (j < count && words[2 * j] == words[0] + j * units)
                    j++;
            if (j == count) {
                for (j = 0; j < count; j++)
                    if (append_number(sums, words[2 * j + 1] & UINT32_MAX) < 0)
                        goto done;
                place = pair(PyLong_FromUnsignedLongLong(page_no * unit), PyLong_FromUnsignedLongLong(length));
                if (place == NULL)
                    goto done;
            }
            PyBuffer_Release(&leaf);
        }
        if (append(places, place == NULL ? Py_NewRef(Py_None) : place) < 0)
            goto done;
    }
    result = Py_BuildValue("OO", places, sums);
done:
    if (leaf.obj != NULL)
        PyBuffer_Release(&leaf);
    Py_XDECREF(places);
    Py_XDECREF(sums);
    return result;
}

/* Hold the bytes of two bytearrays of one size; 0, or -1 after an exception. */
static int
hold_both(PyObject *const *args, Py_buffer *first, Py_buffer *second)
{
    if (PyObject_GetBuffer(args[0], first, PyBUF_WRITABLE) < 0)
        return -1;
    if (PyObject_GetBuffer(args[1], second, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(first);
        return -1;
    }
    if (first->len == second->len)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the states of a bitmap have one size");
    PyBuffer_Release(first);
    PyBuffer_Release(second);
    return -1;
}

/* Twin: snapctl.storage.bitmap.pure_clear_each */
static PyObject *
clear_each(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (check("clear_each", "abbol", args, nargs) < 0)
        return NULL;
    const char *committed = PyBytes_AS_STRING(args[1]), *previous = PyBytes_AS_STRING(args[2]);
    Py_buffer current, free = {.obj = NULL};
    if (args[3] == Py_None ? PyObject_GetBuffer(args[0], &current, PyBUF_WRITABLE) < 0
                           : hold_both((PyObject *const[]){args[0], args[3]}, &current, &free) < 0)
        return NULL;
    char *bytes = current.buf, *also = free.buf;
    PyObject *result = NULL;
    Py_ssize_t size, held = 0, again = 0;
    uint64_t *bits = read_numbers(args[4], &size);
    if (bits == NULL)
        goto done;
    if (PyBytes_GET_SIZE(args[1]) != current.len || PyBytes_GET_SIZE(args[2]) != current.len) {
        PyErr_SetString(PyExc_ValueError, "the states of a bitmap have one size");
        goto done;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        if (bits[i] >= 8 * (uint64_t)current.len || !bit_of(bytes, bits[i]) || (i && bits[i] <= bits[i - 1])) {
            result = Py_NewRef(Py_None);
            goto done;
        }
        held += bit_of(committed, bits[i]);
        again += !bit_of(committed, bits[i]) && !bit_of(previous, bits[i]);
    }
    result = Py_BuildValue("nn", held, again);
    for (Py_ssize_t i = 0; result != NULL && i < size; i++) {
        bytes[bits[i] >> 3] &= (char)~(1u << (bits[i] & 7));
        if (also != NULL && !bit_of(committed, bits[i]) && !bit_of(previous, bits[i]))
            also[bits[i] >> 3] |= (char)(1u << (bits[i] & 7));
    }
done:
    PyMem_Free(bits);
    PyBuffer_Release(&current);
    if (free.obj != NULL)
        PyBuffer_Release(&free);
    return result;
}

/* The 64 bits from a byte on, the first one lowest. */
static uint64_t
word_of(const char *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* The first bit at `at` or behind it that is set, or is clear; `end` if there is none before. */
static uint64_t
next_bit(const char *bytes, uint64_t at, uint64_t end, int is_set)
{
    while (at < end) {
        uint64_t start = at & ~UINT64_C(7);
        if (start + 64 > end) {
            if (bit_of(bytes, at) == is_set)
                break;
            at++;
            continue;
        }
        uint64_t word = (is_set ? word_of(bytes + start / 8) : ~word_of(bytes + start / 8)) >> (at - start);
        if (word)
            return at + (uint64_t)__builtin_ctzll(word);
        at = start + 64;
    }
    return at < end ? at : end;
}

/* Twin: snapctl.storage.bitmap.pure_take_runs */
static PyObject *
take_runs(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t units;
    int64_t count;
    if (check("take_runs", "aaci", args, nargs, &units, &count) < 0)
        return NULL;
    Py_buffer free, current;
    if (hold_both(args, &free, &current) < 0)
        return NULL;
    char *there = free.buf, *taken = current.buf;
    uint64_t size = 8 * (uint64_t)free.len;
    PyObject *found = PyList_New(0);
    for (uint64_t at = 0; found != NULL && PyList_GET_SIZE(found) < count;) {
        uint64_t start = next_bit(there, at, size, 1), most = units < size - start ? start + units : size;
        at = next_bit(there, start, most, 0);
        if (at == size && at - start < units)
            break;
        if (at - start == units) {
            if (next_bit(taken, start, at, 1) < at)
                Py_SETREF(found, Py_NewRef(Py_None));
            else if (append_number(found, start) == 0)
                continue;
            else
                Py_CLEAR(found);
            break;
        }
    }
    for (Py_ssize_t i = 0; found != NULL && found != Py_None && i < PyList_GET_SIZE(found); i++) {
        uint64_t start = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(found, i));
        for (uint64_t bit = start; bit < start + units; bit++) {
            there[bit >> 3] &= (char)~(1u << (bit & 7));
            taken[bit >> 3] |= (char)(1u << (bit & 7));
        }
    }
    PyBuffer_Release(&free);
    PyBuffer_Release(&current);
    return found;
}

/* Twin: snapctl.storage.bitmap.pure_find_run */
static PyObject *
find_run(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t stop;
    uint64_t least;
    if (check("find_run", "aiu", args, nargs, &stop, &least) < 0)
        return NULL;
    const char *bytes = PyByteArray_AS_STRING(args[0]);
    uint64_t size = 8 * (uint64_t)PyByteArray_GET_SIZE(args[0]), start = 0, end = 0;
    size = stop < 0 ? 0 : (uint64_t)stop < size ? (uint64_t)stop : size;
    do {
        if (least < 128)
            start = next_bit(bytes, end, size, 1);
        else {
            /* Most runs are short, but so many bits hold 64 from one multiple of 64 to the next. */
            start = (end + 63) & ~UINT64_C(63);
            while (start + 64 <= size && word_of(bytes + start / 8) != UINT64_MAX)
                start += 64;
            if (start + 64 > size)
                return Py_NewRef(Py_None);
            while (start > end && bit_of(bytes, start - 1))
                start--;
        }
        end = next_bit(bytes, start, size, 0);
    } while (start < size && end - start < least);
    if (start == size)
        return Py_NewRef(Py_None);
    return Py_BuildValue("KK", (unsigned long long)start, (unsigned long long)end);
}

/* ---- The file -------------------------------------------------------------------------------------------------- */

#ifdef __linux__

/* Twin: snapctl.storage.backend.pure_read_each */
static PyObject *
read_each(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t fd, flags;
    uint64_t offset, length;
    if (check("read_each", "ili", args, nargs, &fd, &flags) < 0)
        return NULL;
    if (fd != (int)fd || flags != (int)flags) {
        PyErr_SetString(PyExc_OverflowError, "no such descriptor, or no such flags");
        return NULL;
    }
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < PyList_GET_SIZE(args[1]); i++) {
        if (read_range(PyList_GET_ITEM(args[1], i), &offset, &length) < 0)
            Py_CLEAR(found);
        else if (offset > INT64_MAX || length > PY_SSIZE_T_MAX) {
            PyErr_SetString(PyExc_OverflowError, "no file is as long");
            Py_CLEAR(found);
        } else if (append(found, PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)length)) < 0)
            Py_CLEAR(found);
        else {
            struct iovec room = {PyByteArray_AS_STRING(PyList_GET_ITEM(found, i)), length};
            ssize_t got;
            Py_BEGIN_ALLOW_THREADS;
            got = preadv2((int)fd, &room, 1, (off_t)offset, (int)flags);
            Py_END_ALLOW_THREADS;
            if (got != (ssize_t)length) {
                Py_SETREF(found, Py_NewRef(Py_None));
                break;
            }
        }
    }
    return found;
}

enum { MOST_PARTS = 64 };

/* Write pages of `size` bytes out of buffers, each to its offset, neighbours at a stroke, though no more than `portion`
 * bytes; 0, or the number of an error. */
static int
write_pages(int fd, const uint64_t *offsets, Py_ssize_t count, const Py_buffer *buffer, uint64_t size, uint64_t portion)
{
    uint64_t at = 0;
    for (Py_ssize_t i = 0; i < count;) {
        struct iovec parts[MOST_PARTS];
        uint64_t offset = offsets[i], length = 0;
        int used = 0;
        do {
            for (; at == (uint64_t)buffer->len; at = 0)
                buffer++;
            char *page = (char *)buffer->buf + at;
            if (used && (char *)parts[used - 1].iov_base + parts[used - 1].iov_len == page)
                parts[used - 1].iov_len += size;
            else
                parts[used++] = (struct iovec){page, size};
            at += size;
            length += size;
            i++;
        } while (i < count && offsets[i] == offset + length && used < MOST_PARTS && length + size <= portion);
        for (struct iovec *part = parts; length;) {
            ssize_t done = pwritev(fd, part, used, (off_t)offset);
            if (done < 0 && errno == EINTR)
                continue;
            if (done <= 0)
                return done < 0 ? errno : EIO;
            offset += (uint64_t)done;
            length -= (uint64_t)done;
            for (; length && (size_t)done >= part->iov_len; part++, used--)
                done -= (ssize_t)part->iov_len;
            part->iov_base = (char *)part->iov_base + done;
            part->iov_len -= (size_t)done;
        }
    }
    return 0;
}

/* Twin: snapctl.storage.backend.pure_write_each */
static PyObject *
write_each(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t fd;
    uint64_t size, portion;
    if (check("write_each", "illuu", args, nargs, &fd, &size, &portion) < 0)
        return NULL;
    if (fd != (int)fd) {
        PyErr_SetString(PyExc_OverflowError, "no such descriptor");
        return NULL;
    }
    PyObject *result = NULL;
    Py_ssize_t pages, held = 0, count = PyList_GET_SIZE(args[2]);
    uint64_t *offsets = read_numbers(args[1], &pages), length = 0;
    Py_buffer *buffers = PyMem_New(Py_buffer, count + 1);
    int fits = size > 0, error = 0;
    if (offsets == NULL || buffers == NULL) {
        if (offsets != NULL)
            PyErr_NoMemory();
        goto done;
    }
    for (; held < count && held < PyList_GET_SIZE(args[2]); held++) {
        if (PyObject_GetBuffer(PyList_GET_ITEM(args[2], held), &buffers[held], PyBUF_SIMPLE) < 0)
            goto done;
        length += (uint64_t)buffers[held].len;
        fits &= size && (uint64_t)buffers[held].len % size == 0;
    }
    for (Py_ssize_t i = 0; i < pages; i++)
        fits &= offsets[i] <= INT64_MAX - length;
    if (!fits || length / size != (uint64_t)pages) {
        PyErr_SetString(PyExc_ValueError, "not one page for each offset");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS;
    error = write_pages((int)fd, offsets, pages, buffers, size, portion);
    Py_END_ALLOW_THREADS;
    errno = error;
    result = error ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
done:
    while (held)
        PyBuffer_Release(&buffers[--held]);
    PyMem_Free(buffers);
    PyMem_Free(offsets);
    return result;
}

#endif

/* ---- Requests -------------------------------------------------------------------------------------------------- */

/* Twin: snapctl.engine.runs.pure_runs_of */
static PyObject *
runs_of(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    typedef struct {
        uint64_t first, stop;
        PyObject *data;
    } Write;
    uint64_t block_shift, fanout_shift, size_bytes, offset, length;
    if (check("runs_of", "lssu", args, nargs, &block_shift, &fanout_shift, &size_bytes) < 0)
        return NULL;
    uint64_t block_mask = (UINT64_C(1) << block_shift) - 1, fanout = UINT64_C(1) << fanout_shift;
    Py_ssize_t size = PyList_GET_SIZE(args[0]), held = 0;
    PyObject *result = NULL, *runs = NULL, *leaves = NULL;
    uint64_t blocks = 0;
    Write *writes = PyMem_New(Write, size + 1);
    if (writes == NULL)
        return PyErr_NoMemory();
    for (; held < size; held++) {
        PyObject *pair = PyList_GET_ITEM(args[0], held);
        if (read_pair(pair, &offset, &length) < 0)
            goto done;
        uint64_t first = offset >> block_shift, count = length >> block_shift;
        if (!length || (offset | length) & block_mask || (first & (fanout - 1)) + count > fanout ||
            offset > size_bytes || length > size_bytes - offset)
            goto otherwise;
        Py_ssize_t at = held; /* few, and often in order */
        for (; at && writes[at - 1].first > first; at--)
            writes[at] = writes[at - 1];
        writes[at] = (Write){first, first + count, Py_NewRef(PyTuple_GET_ITEM(pair, 1))};
    }
    for (Py_ssize_t i = 1; i < size; i++)
        if (writes[i].first < writes[i - 1].stop)
            goto otherwise;
    runs = PyList_New(size);
    leaves = PySet_New(NULL);
    for (Py_ssize_t i = 0; runs != NULL && leaves != NULL && i < size; i++) {
        uint64_t leaf = writes[i].first >> fanout_shift;
        PyObject *run = pair(PyLong_FromUnsignedLongLong(writes[i].first), Py_NewRef(writes[i].data));
        if (run == NULL)
            goto done;
        PyList_SET_ITEM(runs, i, run);
        blocks += writes[i].stop - writes[i].first;
        if (i && leaf == writes[i - 1].first >> fanout_shift)
            continue;
        PyObject *number = PyLong_FromUnsignedLongLong(leaf);
        int failed = number == NULL || PySet_Add(leaves, number) < 0;
        Py_XDECREF(number);
        if (failed)
            goto done;
    }
    if (runs != NULL && leaves != NULL)
        result = Py_BuildValue("OOK", runs, leaves, (unsigned long long)blocks);
    goto done;
otherwise:
    result = Py_NewRef(Py_None);
done:
    while (held)
        Py_DECREF(writes[--held].data);
    PyMem_Free(writes);
    Py_XDECREF(runs);
    Py_XDECREF(leaves);
    return result;
}

static uint64_t
big_endian(const uint8_t *bytes, int count)
{
    uint64_t number = 0;
    for (int i = 0; i < count; i++)
        number = number << 8 | bytes[i];
    return number;
}

typedef struct {
    uint64_t begin, end;
} Span;

static int
touches(const Span *spans, Py_ssize_t count, uint64_t offset, uint64_t length)
{
    for (Py_ssize_t i = 0; i < count; i++)
        if (offset < spans[i].end && spans[i].begin < offset + length)
            return 1;
    return 0;
}

/* Twin: snapctl.services.nbd.plain.pure_plain_requests */
static PyObject *
plain_requests(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t position, end, header, plain_read, plain_write, room, most;
    uint64_t end_bytes, most_read_bytes;
    if (check("plain_requests", "oiiiiiuiui", args, nargs, &position, &end, &header, &plain_read, &plain_write,
              &end_bytes, &room, &most_read_bytes, &most) < 0)
        return NULL;
    PyObject *view = PyMemoryView_FromObject(args[0]);
    if (view == NULL)
        return NULL;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    PyObject *read_cookies = PyList_New(0), *ranges = PyList_New(0), *result = NULL;
    PyObject *write_cookies = PyList_New(0), *writes = PyList_New(0);
    Span *written = NULL;
    Py_ssize_t count = 0;
    if (read_cookies == NULL || ranges == NULL || write_cookies == NULL || writes == NULL)
        goto done;
    if (buffer->ndim != 1 || buffer->itemsize != 1 || !PyBuffer_IsContiguous(buffer, 'C') || position < 0 || end < 0 ||
        end > buffer->len || (header != 28 && header != 32)) {
        PyErr_SetString(PyExc_ValueError, "no such bytes");
        goto done;
    }
    int64_t most_written = most < end / header ? most : end / header;
    written = PyMem_New(Span, most_written > 0 ? most_written : 1);
    if (written == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; most > 0 && room > 0 && position <= end - header; most--) {
        const uint8_t *request = (const uint8_t *)buffer->buf + position;
        int64_t kind = (int64_t)big_endian(request, 8), begin = position + header;
        uint64_t cookie = big_endian(request + 8, 8), offset = big_endian(request + 16, 8);
        uint64_t length = big_endian(request + 24, (int)header - 24);
        /* No magic number makes a kind negative, but a client may, and no writes at all are asked for as -1. */
        if (kind < 0 || !length || offset > end_bytes || length > end_bytes - offset)
            break;
        if (kind == plain_write && length <= (uint64_t)(end - begin)) {
            position = begin + (int64_t)length;
            written[count++] = (Span){offset, offset + length};
            if (append_number(write_cookies, cookie) < 0 ||
                append(writes, pair(PyLong_FromUnsignedLongLong(offset), PySequence_GetSlice(view, begin, position))) < 0)
                goto done;
        } else if (kind == plain_read && length <= most_read_bytes && !touches(written, count, offset, length)) {
            position = begin;
            room = length < (uint64_t)room ? room - (int64_t)length : 0;
            if (append_number(read_cookies, cookie) < 0 ||
                append(ranges, pair(PyLong_FromUnsignedLongLong(offset), PyLong_FromUnsignedLongLong(length))) < 0)
                goto done;
        } else
            break;
    }
    result = Py_BuildValue("LOOOO", (long long)position, read_cookies, ranges, write_cookies, writes);
done:
    PyMem_Free(written);
    Py_DECREF(view);
    Py_XDECREF(read_cookies);
    Py_XDECREF(ranges);
    Py_XDECREF(write_cookies);
    Py_XDECREF(writes);
    return result;
}

/* ---- The module ------------------------------------------------------------------------------------------------ */

#define FUNCTION(name, arguments) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, #name arguments "\n--\n\n"}

static PyMethodDef functions[] = {
    FUNCTION(checksums, "(data, size, /)"),
    FUNCTION(checksums_of, "(buffers, size, /)"),
    FUNCTION(plan, "(leaves, bitmaps, runs, block_shift, fanout_shift, bitmap_shift, units, /)"),
    FUNCTION(enter, "(leaves, runs, pages, fresh, sums, block_shift, fanout_shift, birth, /)"),
    FUNCTION(locate_each, "(leaves, ranges, block_shift, fanout_shift, units, unit, first_page, end_page, /)"),
    FUNCTION(clear_each, "(current, committed, previous, free, bits, /)"),
    FUNCTION(take_runs, "(free, current, units, count, /)"),
    FUNCTION(find_run, "(free, stop, least, /)"),
#ifdef __linux__
    FUNCTION(read_each, "(fd, places, flags, /)"),
    FUNCTION(write_each, "(fd, offsets, buffers, size, portion, /)"),
#endif
    FUNCTION(runs_of, "(writes, block_shift, fanout_shift, size_bytes, /)"),
    FUNCTION(plain_requests, "(data, position, end, header_bytes, plain_read, plain_write, end_bytes, most_bytes, "
                             "most_read_bytes, most, /)"),
    {NULL, NULL, 0, NULL},
};

static int
prepare(PyObject *module)
{
    Names *names = PyModule_GetState(module);
    *names = (Names){PyUnicode_InternFromString("current"), PyUnicode_InternFromString("committed")};
    crc32c_prepare();
    return names->current != NULL && names->committed != NULL ? 0 : -1;
}

static void
forget_names(void *module)
{
    Names *names = PyModule_GetState(module);
    Py_CLEAR(names->current);
    Py_CLEAR(names->committed);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, prepare},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "snapctl._native",
    .m_doc = "The compiled core; every function has its twin, and its documentation, in Python.",
    .m_size = sizeof(Names),
    .m_methods = functions,
    .m_slots = slots,
    .m_free = forget_names,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
