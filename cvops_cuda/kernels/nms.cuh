// Boxes as nms sees them: their ranks, who suppresses whom, and the kept boxes of earlier batches. nms.cu says how it
// all works.

#include "numeric.cuh"

constexpr int CHUNK = CVOPS_CHUNK,
              WORDS = CHUNK / 32;     // boxes of a chunk, one for each thread, and words for a bit of each
constexpr unsigned ALL = 0xFFFFFFFF;  // lanes

using Key = decltype(bits_of(T()));
using Label = unsigned long long;
using Word = unsigned long long;

struct Box {
    Real x1, y1, x2, y2;
    Label label;
};
static_assert(sizeof(Box) == CVOPS_BOX_BYTES, "the launcher allocates so many");

__device__ __forceinline__ Real area_of(Box box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

// ------------------------------------------------------------------------------------------------------------ ranks

constexpr Key NOT_RANKED = ~(Key)0;  // behind everything

// Smaller for a larger score; 0.0 and -0.0 are equal and NaN comes last. On integers, because floats would be flushed.
__device__ Key key_of(Real score) {
    constexpr Key HALF = ~(Key)0 >> 1, INFINITE = (Key)(sizeof(Key) == 4 ? 0x7F800000 : 0x7FF0000000000000);
    Key bits = bits_of(score.value), magnitude = bits & HALF;
    if (magnitude > INFINITE) return NOT_RANKED - 1;
    return bits > HALF ? HALF + magnitude : HALF - magnitude;
}

// The key that a box needs to be below in order to take part: that of the largest score that does not.
__device__ Key key_limit(double floor) { return floor != floor ? NOT_RANKED : key_of(real(floor)); }

__device__ Key key_above(const void* scores, long long i, long long dtype, Key limit) {
    Key key = key_of(load(scores, i, dtype));
    return key < limit ? key : NOT_RANKED;
}

// Equal for equal classes only; float classes hold integers.
__device__ Label label_of(const void* idxs, long long i, long long dtype) {
    switch (dtype) {
        case FLOAT64:
        case FLOAT32:
        case FLOAT16:
        case BFLOAT16: {
            double value;
            unsigned short bits16 = dtype == FLOAT16 || dtype == BFLOAT16 ? ((const unsigned short*)idxs)[i] : 0;
            if (dtype == FLOAT64)
                value = ((const double*)idxs)[i];
            else if (dtype == FLOAT32)
                convert(((const float*)idxs)[i], value);
            else
                convert(dtype == FLOAT16 ? from_float16(bits16) : from_bfloat16(bits16), value);
            Label bits = bits_of(value);
            return bits << 1 ? bits : 0;  // -0.0 is 0.0
        }
        case INT8: return (long long)((const signed char*)idxs)[i];
        case INT16: return (long long)((const short*)idxs)[i];
        case INT32: return (long long)((const int*)idxs)[i];
        case UINT8: return ((const unsigned char*)idxs)[i];
        case UINT16: return ((const unsigned short*)idxs)[i];
        case UINT32: return ((const unsigned*)idxs)[i];
        default: return ((const Label*)idxs)[i];
    }
}

// What ranks boxes: their scores, where those greater than the threshold take part (NaN: all), and their classes, or
// null.
struct Ranking {
    const void* scores;
    long long scores_dtype;
    const void* idxs;
    long long idxs_dtype, length;
    double score_threshold;

    __device__ Key limit() const { return key_limit(score_threshold); }
    __device__ Key key(long long i, Key limit) const { return key_above(scores, i, scores_dtype, limit); }
    __device__ Label label(long long i) const { return idxs ? label_of(idxs, i, idxs_dtype) : 0; }
};

__device__ Box box_of(const void* boxes, long long i, long long dtype, Label label) {
    return {load(boxes, 4 * i, dtype), load(boxes, 4 * i + 1, dtype), load(boxes, 4 * i + 2, dtype),
            load(boxes, 4 * i + 3, dtype), label};
}

// The boxes with their ranks: order[rank] is the index of a box. For classes, members[position] is a rank, labels[rank]
// the class, and positions of one class follow each other; both are null where there is one class.
struct Ranked {
    const void* boxes;
    long long boxes_dtype;
    const Key* keys;
    const long long *order, *members;
    const Label* labels;

    __device__ long long rank(long long position) const { return members ? members[position] : position; }
    __device__ Label label(long long position) const { return labels ? labels[rank(position)] : 0; }
    __device__ bool takes_part(long long position) const { return keys[order[rank(position)]] != NOT_RANKED; }
    __device__ Box box(long long position) const {
        return box_of(boxes, order[rank(position)], boxes_dtype, label(position));
    }
    // Whether the batch that begins at `begin` continues a class, and the box is one of it.
    __device__ bool meets_earlier(long long position, long long begin) const {
        return begin > 0 && label(begin - 1) == label(position);
    }
};

// ------------------------------------------------------------------------------------------------------ suppression

// Boxes in shared memory, coordinate by coordinate.
template <int SIZE>
struct Tile {
    Real x1[SIZE], y1[SIZE], x2[SIZE], y2[SIZE], area[SIZE];
    Label label[SIZE];

    __device__ void put(int i, Box box) {
        x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2, label[i] = box.label, area[i] = area_of(box);
    }
    __device__ Box box(int i) const { return {x1[i], y1[i], x2[i], y2[i], label[i]}; }

    // Whether box i overlaps the given one by more than the threshold. The division decides, but it is slow and most
    // pairs fall to `may_suppress`: a number less than a rounded product is not more than the product itself, so the
    // quotient does not round to more than the threshold.
    __device__ bool suppresses(int i, Box box, Real box_area, Real threshold) const {
        Real inter = common(i, box), both = (area[i] + box_area) - inter;
        return may_suppress(i, box, box_area, threshold) && inter / both > threshold;
    }

    __device__ __forceinline__ bool may_suppress(int i, Box box, Real box_area, Real threshold) const {
        Real inter = common(i, box), both = (area[i] + box_area) - inter;
        return inter > Real{0} && !(inter < threshold * both) && label[i] == box.label;
    }

    // The common area; 0, -0, less or NaN where there is none.
    __device__ __forceinline__ Real common(int i, Box box) const {
        Real width = maximum(minimum(x2[i], box.x2) - maximum(x1[i], box.x1), Real{0});
        return width * (minimum(y2[i], box.y2) - maximum(y1[i], box.y1));
    }
};

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }
__device__ __forceinline__ unsigned lower_lanes() { return (1u << lane()) - 1; }

// How many threads before this one, and how many in all, have `flag` set.
template <int WARPS>
__device__ int position_among(unsigned (&words)[WARPS], bool flag, int& total) {
    unsigned word = __ballot_sync(ALL, flag);
    if (lane() == 0) words[warp()] = word;
    __syncthreads();
    int before = __popc(word & lower_lanes());
    total = 0;
    for (int i = 0; i < WARPS; ++i) {
        if (i == warp()) before += total;
        total += __popc(words[i]);
    }
    return before;
}

// Whether this thread's box is kept, if the chunk holds the boxes that are alive. suppressors: a bit for each box of
// the chunk that would suppress it, and `own` the word of them for the boxes of this warp. Each warp settles its own 32
// boxes once those before are settled: it keeps who has no kept suppressor, again and again, until nothing changes.
__device__ __forceinline__ bool settle_own(unsigned (&kept)[WORDS], const unsigned (&suppressors)[WORDS], unsigned own,
                                           bool alive) {
#pragma unroll  // so that `suppressors` lies in registers
    for (int word = 0; word < WORDS; ++word) {
        if (word == warp()) {
            unsigned keep = __ballot_sync(ALL, alive), previous;
            do {
                previous = keep;
                keep = __ballot_sync(ALL, alive && !(own & keep));
            } while (keep != previous);
            alive = keep >> lane() & 1;
            if (lane() == 0) kept[word] = keep;
        }
        __syncthreads();
        // Nobody comes after the last word: not to read it lets the caller use `kept` again at once.
        if (word < WORDS - 1 && word < warp() && suppressors[word] & kept[word]) alive = false;
    }
    return alive;
}

// -------------------------------------------------------------------------------------- boxes kept in earlier batches

// IoU > t means that the widths differ by less than a factor 1 / t and that the common width is at least t times the
// larger one; likewise heights. So kept boxes are hashed by class, by the size buckets of their width and height (the
// leading bits: a logarithm, exactly monotone) and by the cell of their corner x1, y1, whose sides are `pitch` times
// the largest width and height of the size buckets. A box of width v that suppresses one of width w at x has its left
// edge in [x - (v - t max(w, v)), x + (w - t max(w, v))], and few cells are to be looked at. Kept boxes do not overlap
// each other by more than t, and size buckets and cells shrink with 1 - t as the room between them does: so a cell
// holds few.
//
// All of this is in float64, where floor and rounding are monotone, and with a t that is a little lower than the
// threshold, so that rounding in working precision hides no pair. The decision is the true one, on `Real`.
struct Grid {
    double t, pitch, least_area;
    long long shift;

    __device__ long long size_bucket(double size) const { return (long long)(bits_of(size) >> shift); }
    __device__ double smallest(long long bucket) const {
        return with_bits((Word)bucket << shift);
    }  // the smallest size of a bucket
    __device__ double scale(long long bucket) const { return 1 / (pitch * smallest(bucket + 1)); }  // cells per unit
    __device__ long long cell(double position) const {
        return integer_of(floor_of(minimum_of(maximum_of(position, -0x1p62), 0x1p62)));
    }
};

// How a box takes part in suppression across batches. Where an area or a size may underflow or overflow, sizes say
// nothing about IoU: such boxes are listed, and compared with all their like, those within a factor 2^30 included: that
// is more than any ratio that a threshold lets through. If there is no grid (t = 0), all are listed.
struct Role {
    double width, height;
    bool hashed = false, listed = false;

    __device__ Role(Box box, const Grid& grid) {
        double area;
        convert((box.x2 - box.x1).value, width);
        convert((box.y2 - box.y1).value, height);
        convert(area_of(box).value, area);
        // All others (empty, inverted, infinite, NaN) have IoU 0 or NaN with everything.
        if (!(width > 0 && height > 0 && area > 0 && area <= 0x1.fffffffffffffp1023)) return;
        double narrow = minimum_of(width, height), wide = maximum_of(width, height);
        double margin = minimum_of(area / grid.least_area, minimum_of(narrow * 0x1p900, 0x1p900 / wide));
        if (grid.t == 0) margin = 0;
        hashed = margin >= 1;
        listed = margin < 0x1p30;
    }
};

// The boxes that earlier batches have kept, for later ones: `kept`, at their positions. Those in the hash table form
// chains: 1 + the position of the last one in `heads`, of the one before it in `before`, and 0 at the end. Positions
// fall along a chain, so that no schedule changes it. Those listed of the chunk that a launch takes as number n of all
// are listed[CHUNK * n:][:listed_counts[n]].
struct Table {
    Box* kept;
    Word *heads, *before;
    unsigned char* occupied;  // by pair of size buckets, so that empty scales cost nothing; may err to 1
    long long capacity;       // of `heads`, a power of two

    __device__ Word* head(Label label, long long x, long long y, long long a, long long c) const {
        Word key = x * 0x9E3779B97F4A7C15 + y * 0xC2B2AE3D27D4EB4F + ((Word)a * 2053 + c) * 0x165667B19E3779F9;
        key += label * 0x27D4EB2F165667C5;
        // Every bit of the key reaches every bit of the place: regular grids of boxes must not share a place.
        key = (key ^ key >> 32) * 0xD6E8FEB86659FD93;
        return heads + ((key ^ key >> 32) & (capacity - 1));
    }

    __device__ unsigned char& pair(long long a, long long c) const {
        return occupied[((Word)a * 67 + c) % CVOPS_SIZE_BUCKET_PAIRS];
    }

    __device__ void insert(Box box, const Role& role, long long position, const Grid& grid) const {
        double x, y;
        convert(box.x1.value, x);
        convert(box.y1.value, y);
        long long a = grid.size_bucket(role.width), c = grid.size_bucket(role.height);
        pair(a, c) = 1;
        Word* link = head(box.label, grid.cell(x * grid.scale(a)), grid.cell(y * grid.scale(c)), a, c);
        Word own = position + 1;
        for (;;) {
            Word next = *(volatile Word*)link;
            if (next > own) {
                __threadfence();  // what its thread has written is read next
                link = before + (next - 1);
                continue;
            }
            before[position] = next;
            __threadfence();
            if (atomicCAS(link, next, own) == next) return;
        }
    }

    // Whether a box of size buckets (a, c) in the table suppresses the given one.
    __device__ bool suppresses(Box box, const Role& role, long long a, long long c, const Grid& grid,
                               Real threshold) const {
        if (!pair(a, c)) return false;
        long long left, right, top, bottom;
        cells(box.x1, role.width, a, grid, left, right);
        cells(box.y1, role.height, c, grid, top, bottom);
        Tile<1> own;
        own.put(0, box);
        for (long long x = left; x <= right; ++x)
            for (long long y = top; y <= bottom; ++y)
                for (Word entry = *head(box.label, x, y, a, c); entry; entry = before[entry - 1]) {
                    Box other = kept[entry - 1];
                    if (own.suppresses(0, other, area_of(other), threshold)) return true;
                }
        return false;
    }

    // The cells of a size bucket, first to last, in which a suppressor of a box with its edge at `edge` has its own.
    __device__ static void cells(Real edge, double size, long long bucket, const Grid& grid, long long& first,
                                 long long& last) {
        double at, smallest = grid.smallest(bucket), largest = minimum_of(grid.smallest(bucket + 1), size / grid.t);
        convert(edge.value, at);
        double scale = grid.scale(bucket);
        first = grid.cell((at - (largest - grid.t * maximum_of(size, largest))) * scale);
        last = grid.cell((at + (size - grid.t * maximum_of(size, smallest))) * scale);
    }
};
