// Boxes as nms sees them: their ranks, which of two suppresses the other, and the kept boxes of earlier batches. nms.cu
// explains the algorithm.

#include "block.cuh"

constexpr int CHUNK = CVOPS_CHUNK,  // boxes of a chunk, one for each thread
    WORDS = CHUNK / 32;             // with a bit for each box

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

// Boxes take part if their keys are below this one: the key of the largest score that does not take part.
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

// What decides the ranks of boxes: their scores, of which those above the threshold take part (all if it is NaN), and
// their classes, or null.
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

// The boxes in order: order[rank] is the index of a box. With classes, boxes are compared in an order of positions, in
// which those of one class follow each other: members[position] is a rank, and labels[rank] a class. Without classes
// both are null, and the position is the rank.
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
    // Whether the class of the box goes on from the batch before that which begins at `begin`.
    __device__ bool meets_earlier(long long position, long long begin) const {
        return begin > 0 && label(begin - 1) == label(position);
    }
};

// ------------------------------------------------------------------------------------------------------ suppression

// Boxes in shared memory, coordinate by coordinate.
template <int SIZE>
struct Boxes {
    Real x1[SIZE], y1[SIZE], x2[SIZE], y2[SIZE], area[SIZE];
    Label label[SIZE];

    __device__ void put(int i, Box box) {
        x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2, label[i] = box.label, area[i] = area_of(box);
    }
    __device__ Box box(int i) const { return {x1[i], y1[i], x2[i], y2[i], label[i]}; }

    // Whether box i overlaps `box` by more than the threshold. The division decides, but it is slow, so `may_suppress`
    // first excludes most pairs: where inter is less than the rounded product threshold * both, it is not more than the
    // exact product, so the quotient does not round to more than the threshold.
    __device__ bool suppresses(int i, Box box, Real box_area, Real threshold) const {
        Real inter = common(i, box), both = (area[i] + box_area) - inter;
        return may_suppress(i, box, box_area, threshold) && inter / both > threshold;
    }

    __device__ __forceinline__ bool may_suppress(int i, Box box, Real box_area, Real threshold) const {
        Real inter = common(i, box), both = (area[i] + box_area) - inter;
        return inter > Real{0} && !(inter < threshold * both) && label[i] == box.label;
    }

    // The common area; where there is none it is not positive, or NaN.
    __device__ __forceinline__ Real common(int i, Box box) const {
        Real width = maximum(minimum(x2[i], box.x2) - maximum(x1[i], box.x1), Real{0});
        return width * (minimum(y2[i], box.y2) - maximum(y1[i], box.y1));
    }
};

// Whether this thread's box is kept, when the boxes of the chunk that are alive are compared with each other.
// suppressors: a bit for each box of the chunk that would suppress this one; `own` is the word of the boxes of this
// warp. Each warp settles its own 32 boxes after the warps before it: it keeps every box without a kept suppressor, and
// repeats this until nothing changes.
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
        // No box comes after the last word. As it is not read, the caller may use `kept` again at once.
        if (word < WORDS - 1 && word < warp() && suppressors[word] & kept[word]) alive = false;
    }
    return alive;
}

// -------------------------------------------------------------------------------------- boxes kept in earlier batches

// IoU > t means that the widths differ by less than a factor 1 / t and that the common width is at least t times the
// larger one; likewise heights. So kept boxes are hashed by three things: their class; the size buckets of their width
// and height, which are the leading bits, a logarithm that is exactly monotone; and the cell of their corner x1, y1,
// whose sides are `cell_ratio` times the largest width and height of the size buckets:
//
//     x                                              a box of width v that suppresses this one has its left edge in
//     |=============== w ===============|            [x - (v - t max(w, v)), x + (w - t max(w, v))]: a few cells
//          |========= v =========|
//
// Kept boxes do not overlap each other by more than t, and size buckets and cells shrink with 1 - t as the distance
// between kept boxes does: so a cell holds few.
//
// The geometry is computed in float64, where floor and rounding are monotone, and with a t that is a little lower than
// the threshold, so that rounding in working precision hides no pair. What decides is IoU itself, on `Real`.
struct Grid {
    double t, cell_ratio, least_area;
    long long shift;

    __device__ long long size_bucket(double size) const { return (long long)(bits_of(size) >> shift); }
    __device__ double smallest(long long bucket) const { return with_bits((Word)bucket << shift); }
    __device__ double scale(long long bucket) const {
        return 1 / (cell_ratio * smallest(bucket + 1));
    }  // cells per unit
    __device__ long long cell(double position) const {
        return integer_of(floor_of(minimum_of(maximum_of(position, -0x1p62), 0x1p62)));
    }
};

// How a box is found by later batches: it is hashed, or listed, or both. Where an area or a size may underflow or
// overflow, sizes say nothing about IoU. Such boxes are listed and compared with all that are listed, which are also
// the boxes within a factor 2^30 of such sizes: that is more than the ratio of sizes at any IoU above a threshold.
// Without a grid (t = 0) all boxes are listed.
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

// The boxes that earlier batches have kept, for later batches: kept[position]. Those that are hashed form chains:
//
//     heads[chain] = 1 + position of the last box of the chain, older[position] = 1 + that of the box before it, or 0
//
// Positions decrease along a chain, so that the order in which blocks insert boxes makes no difference. The boxes that
// are listed are, for chunk n of all batches together, at listed[CHUNK * n] and following, listed_counts[n] of them.
struct Table {
    Box* kept;
    Word *heads, *older;
    unsigned char* occupied;  // by pair of size buckets, to skip pairs without boxes; may be 1 for some of these
    long long capacity;       // of `heads`, a power of two

    __device__ Word* head(Label label, long long x, long long y, long long a, long long c) const {
        Word key = x * 0x9E3779B97F4A7C15 + y * 0xC2B2AE3D27D4EB4F + ((Word)a * 2053 + c) * 0x165667B19E3779F9;
        key += label * 0x27D4EB2F165667C5;
        // Every bit of the key reaches every bit of the result: the cells of a regular grid of boxes must not share
        // chains.
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
                __threadfence();  // what the thread of that box has written is read next
                link = older + (next - 1);
                continue;
            }
            older[position] = next;
            __threadfence();
            if (atomicCAS(link, next, own) == next) return;
        }
    }

    // Whether a box in the table, of the size buckets a (of width) and c (of height), suppresses this box.
    __device__ bool suppresses(Box box, const Role& role, long long a, long long c, const Grid& grid,
                               Real threshold) const {
        if (!pair(a, c)) return false;
        long long left, right, top, bottom;
        cells(box.x1, role.width, a, grid, left, right);
        cells(box.y1, role.height, c, grid, top, bottom);
        Boxes<1> own;
        own.put(0, box);
        for (long long x = left; x <= right; ++x)
            for (long long y = top; y <= bottom; ++y)
                for (Word entry = *head(box.label, x, y, a, c); entry; entry = older[entry - 1]) {
                    Box other = kept[entry - 1];
                    if (own.suppresses(0, other, area_of(other), threshold)) return true;
                }
        return false;
    }

    // Along one axis: the first and the last cell of a size bucket in which a suppressor of this box can have its edge.
    __device__ static void cells(Real edge, double size, long long bucket, const Grid& grid, long long& first,
                                 long long& last) {
        double at, smallest = grid.smallest(bucket), largest = minimum_of(grid.smallest(bucket + 1), size / grid.t);
        convert(edge.value, at);
        double scale = grid.scale(bucket);
        first = grid.cell((at - (largest - grid.t * maximum_of(size, largest))) * scale);
        last = grid.cell((at + (size - grid.t * maximum_of(size, smallest))) * scale);
    }
};
