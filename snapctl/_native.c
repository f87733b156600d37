/* The compiled core: loops over bytes, words and bits that Python is too slow for.
 *
 * Every function has a twin in Python, in the module that it belongs to. The twin is the reference: tests hold the two
 * together, and it is what runs where this file was not compiled. Nothing here does input or output, decides anything,
 * or keeps anything between two calls. The lock of the interpreter is held throughout, so no buffer changes meanwhile;
 * no call takes long enough to be worth giving it up.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

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

/* ---- Functions: arguments by position, twins as named ---------------------------------------------------------- */

/* Twin: snapctl.format.checksum.pure_checksums */
static PyObject *
checksums(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "checksums() takes 2 arguments (%zd given)", nargs);
        return NULL;
    }
    /* Without an exception to raise, numbers beyond what a size can be count as the largest. */
    Py_ssize_t size = PyNumber_AsSsize_t(args[1], NULL);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    if (size < 1) {
        PyErr_SetString(PyExc_ValueError, "size must be at least 1");
        return NULL;
    }
    Py_buffer data;
    if (PyObject_GetBuffer(args[0], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    const uint8_t *bytes = data.buf;
    Py_ssize_t count = data.len / size + (data.len % size != 0);
    PyObject *found = PyList_New(count);
    for (Py_ssize_t i = 0; found != NULL && i < count; i++) {
        Py_ssize_t at = i * size;
        Py_ssize_t length = data.len - at < size ? data.len - at : size;
        PyObject *checksum = PyLong_FromUnsignedLong(crc32c(bytes + at, (size_t)length));
        if (checksum == NULL)
            Py_CLEAR(found);
        else
            PyList_SET_ITEM(found, i, checksum);
    }
    PyBuffer_Release(&data);
    return found;
}

static int
append_number(PyObject *list, uint64_t number)
{
    PyObject *item = PyLong_FromUnsignedLongLong(number);
    if (item == NULL)
        return -1;
    int result = PyList_Append(list, item);
    Py_DECREF(item);
    return result;
}

/* Append the checksums of the pieces of a buffer; -1 after an exception. */
static int
append_checksums(PyObject *found, PyObject *buffer, Py_ssize_t size)
{
    Py_buffer data;
    if (PyObject_GetBuffer(buffer, &data, PyBUF_SIMPLE) < 0)
        return -1;
    const uint8_t *bytes = data.buf;
    int failed = 0;
    for (Py_ssize_t at = 0; at < data.len && !failed; at += size < data.len - at ? size : data.len - at) {
        Py_ssize_t length = data.len - at < size ? data.len - at : size;
        failed = append_number(found, crc32c(bytes + at, (size_t)length)) < 0;
    }
    PyBuffer_Release(&data);
    return failed ? -1 : 0;
}

/* Twin: snapctl.format.checksum.pure_checksums_of */
static PyObject *
checksums_of(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "checksums_of() takes a list of buffers and a size");
        return NULL;
    }
    Py_ssize_t size = PyNumber_AsSsize_t(args[1], NULL);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    if (size < 1) {
        PyErr_SetString(PyExc_ValueError, "size must be at least 1");
        return NULL;
    }
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < PyList_GET_SIZE(args[0]); i++)
        if (append_checksums(found, PyList_GET_ITEM(args[0], i), size) < 0)
            Py_CLEAR(found);
    return found;
}

static int
are_shifts(int block_shift, int fanout_shift)
{
    return block_shift >= 0 && block_shift < 32 && fanout_shift >= 0 && fanout_shift < 24;
}

/* ---- Words of tables, bits of the space map, runs of blocks ---------------------------------------------------- */

#define KIND_SHIFT 48
#define PAGE_KIND 1ull
#define PAGE_MASK ((1ull << KIND_SHIFT) - 1)

/* A leaf's words, or those of the last leaf that was asked for. */
typedef struct {
    uint64_t leaf_no;
    Py_buffer buffer;
    uint64_t *words;
} Leaf;

/* Find the words of a leaf; 1 if they are there, 0 if not, -1 after an exception. */
static int
find_leaf(Leaf *leaf, PyObject *leaves, uint64_t leaf_no, uint64_t fanout)
{
    if (leaf->words != NULL && leaf->leaf_no == leaf_no)
        return 1;
    if (leaf->words != NULL)
        PyBuffer_Release(&leaf->buffer);
    leaf->words = NULL;
    PyObject *key = PyLong_FromUnsignedLongLong(leaf_no);
    if (key == NULL)
        return -1;
    PyObject *words = PyDict_GetItemWithError(leaves, key);
    Py_DECREF(key);
    if (words == NULL)
        return PyErr_Occurred() ? -1 : 0;
    if (PyObject_GetBuffer(words, &leaf->buffer, PyBUF_WRITABLE) < 0)
        return -1;
    if ((uint64_t)leaf->buffer.len != fanout * 16) {
        PyBuffer_Release(&leaf->buffer);
        PyErr_SetString(PyExc_ValueError, "a leaf of another size");
        return -1;
    }
    leaf->words = leaf->buffer.buf;
    leaf->leaf_no = leaf_no;
    return 1;
}

static void
release_leaf(Leaf *leaf)
{
    if (leaf->words != NULL)
        PyBuffer_Release(&leaf->buffer);
    leaf->words = NULL;
}

/* A run of whole blocks beneath one leaf. */
typedef struct {
    uint64_t first, count;
} Run;

/* Read the runs; NULL after an exception, or with none if they are not as they should be. */
static Run *
read_runs(PyObject *runs, int block_shift, int fanout_shift)
{
    Py_ssize_t n = PyList_GET_SIZE(runs);
    uint64_t fanout = 1ull << fanout_shift;
    Run *found = PyMem_New(Run, n ? n : 1);
    if (found == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *pair = PyList_GET_ITEM(runs, i);
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "a run is a pair");
            goto failed;
        }
        uint64_t first = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(pair, 0));
        if (first == (uint64_t)-1 && PyErr_Occurred())
            goto failed;
        Py_ssize_t length = PyObject_Size(PyTuple_GET_ITEM(pair, 1));
        if (length < 0)
            goto failed;
        found[i].first = first;
        found[i].count = (uint64_t)length >> block_shift;
        if (!found[i].count || found[i].count << block_shift != (uint64_t)length ||
            (first & (fanout - 1)) + found[i].count > fanout) {
            PyErr_SetString(PyExc_ValueError, "a run is whole blocks beneath one leaf");
            goto failed;
        }
    }
    return found;
failed:
    PyMem_Free(found);
    return NULL;
}

/* The states of a bitmap of the space map. */
typedef struct {
    uint64_t index;
    PyObject *current, *committed;
    uint64_t bits;
} Bitmap;

static void
release_bitmap(Bitmap *bitmap)
{
    Py_CLEAR(bitmap->current);
    Py_CLEAR(bitmap->committed);
}

/* As find_leaf, for a bitmap. */
static int
find_bitmap(Bitmap *bitmap, PyObject *bitmaps, uint64_t index)
{
    if (bitmap->current != NULL && bitmap->index == index)
        return 1;
    release_bitmap(bitmap);
    PyObject *key = PyLong_FromUnsignedLongLong(index);
    if (key == NULL)
        return -1;
    PyObject *found = PyDict_GetItemWithError(bitmaps, key);
    Py_DECREF(key);
    if (found == NULL)
        return PyErr_Occurred() ? -1 : 0;
    bitmap->current = PyObject_GetAttrString(found, "current");
    bitmap->committed = PyObject_GetAttrString(found, "committed");
    if (bitmap->current == NULL || bitmap->committed == NULL) {
        release_bitmap(bitmap);
        return -1;
    }
    if (!PyByteArray_Check(bitmap->current) || !PyBytes_Check(bitmap->committed) ||
        PyByteArray_GET_SIZE(bitmap->current) != PyBytes_GET_SIZE(bitmap->committed)) {
        release_bitmap(bitmap);
        PyErr_SetString(PyExc_TypeError, "a bitmap has a bytearray and bytes of one size");
        return -1;
    }
    bitmap->index = index;
    bitmap->bits = (uint64_t)PyBytes_GET_SIZE(bitmap->committed) * 8;
    return 1;
}

static int
bit_of(const char *bytes, uint64_t bit)
{
    return (unsigned char)bytes[bit >> 3] >> (bit & 7) & 1;
}

/* Whether pages were born in the open transaction: 1, 0, or 2 if the general way has to look at them, -1. */
static int
are_fresh(Bitmap *bitmap, PyObject *bitmaps, uint64_t page_no, uint64_t units, int bitmap_shift)
{
    uint64_t bit = page_no & ((1ull << bitmap_shift) - 1);
    if (page_no == 0 || bit + units > 1ull << bitmap_shift)
        return 2;
    int found = find_bitmap(bitmap, bitmaps, page_no >> bitmap_shift);
    if (found <= 0)
        return found < 0 ? -1 : 2;
    if (bit + units > bitmap->bits)
        return 2;
    const char *current = PyByteArray_AS_STRING(bitmap->current), *committed = PyBytes_AS_STRING(bitmap->committed);
    int fresh = 1;
    for (uint64_t i = bit; i < bit + units; i++) {
        if (!bit_of(current, i))
            return 2;
        if (bit_of(committed, i))
            fresh = 0;
    }
    return fresh;
}

/* Twin: snapctl.engine.placing.pure_plan */
static PyObject *
plan(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *leaves, *bitmaps, *runs;
    int block_shift, fanout_shift, bitmap_shift, units;
    if (!PyArg_ParseTuple(args, "O!O!O!iiii", &PyDict_Type, &leaves, &PyDict_Type, &bitmaps, &PyList_Type, &runs,
                          &block_shift, &fanout_shift, &bitmap_shift, &units))
        return NULL;
    if (!are_shifts(block_shift, fanout_shift) || bitmap_shift < 0 || bitmap_shift > 40 || units < 1 || units > 4096) {
        PyErr_SetString(PyExc_ValueError, "no such geometry");
        return NULL;
    }
    Py_ssize_t n = PyList_GET_SIZE(runs);
    Run *read = read_runs(runs, block_shift, fanout_shift);
    if (read == NULL)
        return NULL;
    Leaf leaf = {0};
    Bitmap bitmap = {0};
    PyObject *places = PyList_New(n), *old = PyList_New(0), *result = NULL;
    uint64_t fanout = 1ull << fanout_shift, new_blocks = 0;
    if (places == NULL || old == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        uint64_t count = read[i].count;
        int found = find_leaf(&leaf, leaves, read[i].first >> fanout_shift, fanout);
        if (found < 0)
            goto done;
        if (!found)
            goto otherwise;
        const uint64_t *words = leaf.words + 2 * (read[i].first & (fanout - 1));
        uint64_t place = words[0] >> KIND_SHIFT == PAGE_KIND ? words[0] & PAGE_MASK : 0;
        for (uint64_t j = 1; j < count && place; j++)
            if (words[2 * j] != words[0] + j * (uint64_t)units)
                place = 0;
        if (place) {
            int fresh = are_fresh(&bitmap, bitmaps, place, count * (uint64_t)units, bitmap_shift);
            if (fresh < 0)
                goto done;
            if (fresh == 2)
                goto otherwise;
            if (!fresh)
                place = 0;
        }
        if (!place) {
            new_blocks += count;
            for (uint64_t j = 0; j < count; j++)
                if (words[2 * j] >> KIND_SHIFT == PAGE_KIND && append_number(old, words[2 * j] & PAGE_MASK) < 0)
                    goto done;
        }
        PyObject *item = PyLong_FromUnsignedLongLong(place);
        if (item == NULL)
            goto done;
        PyList_SET_ITEM(places, i, item);
    }
    result = Py_BuildValue("OOK", places, old, (unsigned long long)new_blocks);
    goto done;
otherwise:
    result = Py_NewRef(Py_None);
done:
    release_leaf(&leaf);
    release_bitmap(&bitmap);
    Py_XDECREF(places);
    Py_XDECREF(old);
    PyMem_Free(read);
    return result;
}

/* Read numbers into memory of their own; NULL after an exception. */
static uint64_t *
read_numbers(PyObject *list)
{
    Py_ssize_t n = PyList_GET_SIZE(list);
    uint64_t *numbers = PyMem_New(uint64_t, n ? n : 1);
    if (numbers == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        numbers[i] = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(list, i));
        if (numbers[i] == (uint64_t)-1 && PyErr_Occurred()) {
            PyMem_Free(numbers);
            return NULL;
        }
    }
    return numbers;
}

/* Twin: snapctl.engine.placing.pure_enter */
static PyObject *
enter(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *leaves, *runs, *places, *pages, *sums;
    int block_shift, fanout_shift, units;
    unsigned long long birth;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!iiiK", &PyDict_Type, &leaves, &PyList_Type, &runs, &PyList_Type, &places,
                          &PyList_Type, &pages, &PyList_Type, &sums, &block_shift, &fanout_shift, &units, &birth))
        return NULL;
    if (!are_shifts(block_shift, fanout_shift) || units < 1 || PyList_GET_SIZE(places) != PyList_GET_SIZE(runs)) {
        PyErr_SetString(PyExc_ValueError, "no such geometry, or a place for each run is missing");
        return NULL;
    }
    Py_ssize_t n = PyList_GET_SIZE(runs), pages_left = PyList_GET_SIZE(pages), sums_left = PyList_GET_SIZE(sums);
    uint64_t fanout = 1ull << fanout_shift;
    Leaf leaf = {0};
    PyObject *result = NULL;
    uint64_t *place = NULL, *page = NULL, *sum = NULL;
    Run *read = read_runs(runs, block_shift, fanout_shift);
    if (read == NULL || (place = read_numbers(places)) == NULL || (page = read_numbers(pages)) == NULL ||
        (sum = read_numbers(sums)) == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < n; i++) {  /* everything is looked at before anything is changed */
        int found = find_leaf(&leaf, leaves, read[i].first >> fanout_shift, fanout);
        if (found < 0)
            goto done;
        if (!found) {
            PyErr_SetString(PyExc_KeyError, "a leaf is not there");
            goto done;
        }
        sums_left -= (Py_ssize_t)read[i].count;
        if (!place[i])
            pages_left -= (Py_ssize_t)read[i].count;
    }
    if (sums_left || pages_left) {
        PyErr_SetString(PyExc_ValueError, "not one checksum for each block, or not one page for each that has none");
        goto done;
    }
    Py_ssize_t next_page = 0, next_sum = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (find_leaf(&leaf, leaves, read[i].first >> fanout_shift, fanout) <= 0)
            goto done;
        uint64_t *words = leaf.words + 2 * (read[i].first & (fanout - 1));
        for (uint64_t j = 0; j < read[i].count; j++) {
            uint64_t page_no = place[i] ? place[i] + j * (uint64_t)units : page[next_page++];
            words[2 * j] = PAGE_KIND << KIND_SHIFT | (page_no & PAGE_MASK);
            words[2 * j + 1] = birth | (sum[next_sum++] & 0xffffffffu);
        }
    }
    result = Py_NewRef(Py_None);
done:
    release_leaf(&leaf);
    PyMem_Free(read);
    PyMem_Free(place);
    PyMem_Free(page);
    PyMem_Free(sum);
    return result;
}

/* Twin: snapctl.storage.bitmap.pure_clear_each */
static PyObject *
clear_each(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *current, *committed, *previous, *bits;
    if (!PyArg_ParseTuple(args, "O!O!O!O!", &PyByteArray_Type, &current, &PyBytes_Type, &committed, &PyBytes_Type,
                          &previous, &PyList_Type, &bits))
        return NULL;
    Py_ssize_t size = PyByteArray_GET_SIZE(current), n = PyList_GET_SIZE(bits), held = 0;
    if (PyBytes_GET_SIZE(committed) != size || PyBytes_GET_SIZE(previous) != size) {
        PyErr_SetString(PyExc_ValueError, "the states of a bitmap have one size");
        return NULL;
    }
    uint64_t *bit = read_numbers(bits);
    if (bit == NULL)
        return NULL;
    char *now = PyByteArray_AS_STRING(current);
    const char *last = PyBytes_AS_STRING(committed), *before = PyBytes_AS_STRING(previous);
    PyObject *again = PyList_New(0), *result = NULL;
    if (again == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < n; i++)
        if (bit[i] >= (uint64_t)size * 8 || !bit_of(now, bit[i]) || (i && bit[i] <= bit[i - 1])) {
            result = Py_NewRef(Py_None);
            goto done;
        }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (bit_of(last, bit[i]))
            held++;
        else if (!bit_of(before, bit[i]) && append_number(again, bit[i]) < 0)
            goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        now[bit[i] >> 3] = (char)((unsigned char)now[bit[i] >> 3] & ~(1u << (bit[i] & 7)));
    result = Py_BuildValue("nO", held, again);
done:
    Py_XDECREF(again);
    PyMem_Free(bit);
    return result;
}

/* ---- Requests -------------------------------------------------------------------------------------------------- */

/* Twin: snapctl.engine.runs.pure_runs_of */
static PyObject *
runs_of(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *writes;
    int block_shift, fanout_shift;
    unsigned long long size_bytes;
    if (!PyArg_ParseTuple(args, "O!iiK", &PyList_Type, &writes, &block_shift, &fanout_shift, &size_bytes))
        return NULL;
    if (!are_shifts(block_shift, fanout_shift)) {
        PyErr_SetString(PyExc_ValueError, "no such geometry");
        return NULL;
    }
    struct piece {
        uint64_t first, count;
        PyObject *data;
    };
    Py_ssize_t n = PyList_GET_SIZE(writes);
    uint64_t low = (1ull << block_shift) - 1, fanout = 1ull << fanout_shift;
    struct piece *pieces = PyMem_New(struct piece, n ? n : 1);
    if (pieces == NULL)
        return PyErr_NoMemory();
    PyObject *result = NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *pair = PyList_GET_ITEM(writes, i);
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "a write is a pair");
            goto done;
        }
        uint64_t offset = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(pair, 0));
        if (offset == (uint64_t)-1 && PyErr_Occurred())
            goto done;
        Py_ssize_t length = PyObject_Size(PyTuple_GET_ITEM(pair, 1));
        if (length < 0)
            goto done;
        struct piece piece = {offset >> block_shift, (uint64_t)length >> block_shift, PyTuple_GET_ITEM(pair, 1)};
        if (!length || ((offset | (uint64_t)length) & low) || (piece.first & (fanout - 1)) + piece.count > fanout ||
            offset > size_bytes || (uint64_t)length > size_bytes - offset)
            goto otherwise;
        Py_ssize_t at = i;  /* few, and often in order */
        for (; at && pieces[at - 1].first > piece.first; at--)
            pieces[at] = pieces[at - 1];
        pieces[at] = piece;
    }
    for (Py_ssize_t i = 1; i < n; i++)
        if (pieces[i].first < pieces[i - 1].first + pieces[i - 1].count)
            goto otherwise;
    result = PyList_New(n);
    for (Py_ssize_t i = 0; result != NULL && i < n; i++) {
        PyObject *run = Py_BuildValue("KO", (unsigned long long)pieces[i].first, pieces[i].data);
        if (run == NULL)
            Py_CLEAR(result);
        else
            PyList_SET_ITEM(result, i, run);
    }
    goto done;
otherwise:
    result = Py_NewRef(Py_None);
done:
    PyMem_Free(pieces);
    return result;
}

static uint64_t
big_endian(const unsigned char *bytes, int count)
{
    uint64_t number = 0;
    for (int i = 0; i < count; i++)
        number = number << 8 | bytes[i];
    return number;
}

/* Twin: snapctl.services.nbd.plain.pure_plain_requests */
static PyObject *
plain_requests(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *data;
    Py_ssize_t position, end, most;
    int header;
    long long plain_read, plain_write, room;
    unsigned long long end_bytes, piece_bytes;
    if (!PyArg_ParseTuple(args, "OnniLLKLKn", &data, &position, &end, &header, &plain_read, &plain_write, &end_bytes,
                          &room, &piece_bytes, &most))
        return NULL;
    PyObject *view = PyMemoryView_FromObject(data);
    if (view == NULL)
        return NULL;
    Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    PyObject *reads = PyList_New(0), *cookies = PyList_New(0), *writes = PyList_New(0), *result = NULL;
    if (reads == NULL || cookies == NULL || writes == NULL)
        goto done;
    if (!PyBuffer_IsContiguous(buffer, 'C') || (header != 28 && header != 32) || position < 0 || end > buffer->len) {
        PyErr_SetString(PyExc_ValueError, "no such bytes");
        goto done;
    }
    const unsigned char *bytes = buffer->buf;
    for (; most > 0 && room > 0 && position <= end - header; most--) {
        const unsigned char *request = bytes + position;
        long long kind = (long long)big_endian(request, 8);
        uint64_t cookie = big_endian(request + 8, 8), offset = big_endian(request + 16, 8);
        uint64_t length = big_endian(request + 24, header - 24);
        if (!length || offset > end_bytes || length > end_bytes - offset)
            break;
        PyObject *item;
        if (kind == plain_write) {
            Py_ssize_t begin = position + header;
            if (length > (uint64_t)(end - begin))
                break;
            PyObject *from = PyLong_FromSsize_t(begin), *to = PyLong_FromSsize_t(begin + (Py_ssize_t)length);
            PyObject *slice = from && to ? PySlice_New(from, to, NULL) : NULL;
            PyObject *payload = slice ? PyObject_GetItem(view, slice) : NULL;
            Py_XDECREF(from);
            Py_XDECREF(to);
            Py_XDECREF(slice);
            if (payload == NULL)
                goto done;
            item = Py_BuildValue("KN", (unsigned long long)offset, payload);
            if (item == NULL)
                goto done;
            int failed = PyList_Append(writes, item) < 0 || append_number(cookies, cookie) < 0;
            Py_DECREF(item);
            if (failed)
                goto done;
            position = begin + (Py_ssize_t)length;
        } else if (kind == plain_read && length <= piece_bytes) {
            item = Py_BuildValue("KKK", (unsigned long long)cookie, (unsigned long long)offset,
                                 (unsigned long long)length);
            if (item == NULL)
                goto done;
            int failed = PyList_Append(reads, item) < 0;
            Py_DECREF(item);
            if (failed)
                goto done;
            room -= (long long)length;
            position += header;
        } else
            break;
    }
    result = Py_BuildValue("nOOO", position, reads, cookies, writes);
done:
    Py_DECREF(view);
    Py_XDECREF(reads);
    Py_XDECREF(cookies);
    Py_XDECREF(writes);
    return result;
}

static PyMethodDef functions[] = {
    {"checksums", (PyCFunction)(void (*)(void))checksums, METH_FASTCALL, "checksums(data, size, /)\n--\n\n"},
    {"checksums_of", (PyCFunction)(void (*)(void))checksums_of, METH_FASTCALL,
     "checksums_of(buffers, size, /)\n--\n\n"},
    {"plan", plan, METH_VARARGS,
     "plan(leaves, bitmaps, runs, block_shift, fanout_shift, bitmap_shift, units, /)\n--\n\n"},
    {"enter", enter, METH_VARARGS,
     "enter(leaves, runs, places, pages, sums, block_shift, fanout_shift, units, birth, /)\n--\n\n"},
    {"clear_each", clear_each, METH_VARARGS, "clear_each(current, committed, previous, bits, /)\n--\n\n"},
    {"runs_of", runs_of, METH_VARARGS, "runs_of(writes, block_shift, fanout_shift, size_bytes, /)\n--\n\n"},
    {"plain_requests", plain_requests, METH_VARARGS,
     "plain_requests(data, position, end, header_bytes, plain_read, plain_write, end_bytes, most_bytes, "
     "most_read_bytes, most, /)\n--\n\n"},
    {NULL, NULL, 0, NULL},
};

static int
prepare(PyObject *Py_UNUSED(module))
{
    crc32c_prepare();
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, prepare},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "snapctl._native",
    .m_doc = "The compiled core; every function has its twin, and its documentation, in Python.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
