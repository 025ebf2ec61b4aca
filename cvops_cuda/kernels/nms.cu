// Greedy non-maximum suppression [1]: in rank order, a box is kept unless a kept one of better rank overlaps it by more
// than a threshold. Exactly the CPU backend's boxes: every decision is taken on `Real`.
//
// Boxes are taken in chunks of one block, in rank order. A chunk is compared with the boxes kept before it, then settled
// within itself. Up to BLOCK_LIMIT boxes, `nms_block` does everything, the sort included, in one launch. Beyond, after
// `nms_keys` (and `nms_labels`) and a radix sort, `nms_chain` runs all chunks at once: each publishes what it has kept
// and the next ones wait for it, while they compare with what is published already. So only the last step of each chunk
// is serial, memory is O(L), and no launch depends on the data. A square mask of all pairs, as torchvision's, would read
// and write L^2 / 8 bytes and still be walked through serially. `nms_compact` then writes the kept indices in rank order.
//
// Classes are segments: boxes with equal labels lie together, in rank order, and only those are compared.
//
// [1] A. Neubeck and L. Van Gool, "Efficient Non-Maximum Suppression", ICPR 2006.

constexpr int BLOCK_THREADS = 256, BLOCK_LIMIT = 2048, CHAIN_THREADS = 512, COMPACT_THREADS = 1024;
constexpr unsigned ALL = 0xFFFFFFFF;  // lanes

using Key = decltype(bits_of(T()));
using Label = unsigned long long;

struct Box {
    Real x1, y1, x2, y2;
    Label label;
};

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
            if (dtype == FLOAT64) value = ((const double*)idxs)[i];
            else if (dtype == FLOAT32) convert(((const float*)idxs)[i], value);
            else convert(dtype == FLOAT16 ? from_float16(bits16) : from_bfloat16(bits16), value);
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

__device__ Box box_of(const void* boxes, long long i, long long dtype, Label label) {
    return {load(boxes, 4 * i, dtype), load(boxes, 4 * i + 1, dtype), load(boxes, 4 * i + 2, dtype),
            load(boxes, 4 * i + 3, dtype), label};
}

// ------------------------------------------------------------------------------------------------------ suppression

// Boxes in shared memory, coordinate by coordinate.
template <int SIZE>
struct Tile {
    Real x1[SIZE], y1[SIZE], x2[SIZE], y2[SIZE], area[SIZE];
    Label label[SIZE];

    __device__ void put(int i, Box box) {
        x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2, label[i] = box.label;
        area[i] = (box.x2 - box.x1) * (box.y2 - box.y1);
    }

    // Whether box i overlaps the given one by more than the threshold. The division decides, but it is slow and most pairs
    // fall to `may_suppress`: a number less than a rounded product is not more than the product itself, and so the
    // quotient does not round to more than the threshold.
    __device__ bool suppresses(int i, Box box, Real box_area, Real threshold) const {
        Real inter = common(i, box), both = (area[i] + box_area) - inter;
        return may_suppress(i, box, box_area, threshold) && inter / both > threshold;
    }

    __device__ __forceinline__ bool may_suppress(int i, Box box, Real box_area, Real threshold) const {
        Real inter = common(i, box), both = (area[i] + box_area) - inter;
        return inter > Real{0} && !(inter < threshold * both) && label[i] == box.label;
    }

    __device__ __forceinline__ Real common(int i, Box box) const {
        Real width = maximum(minimum(x2[i], box.x2) - maximum(x1[i], box.x1), Real{0});
        Real height = maximum(minimum(y2[i], box.y2) - maximum(y1[i], box.y1), Real{0});
        return width * height;
    }
};

// What the threads of a block share while they settle a chunk.
template <int THREADS>
struct Chunk {
    Tile<THREADS> tile;
    unsigned words[THREADS / 32];  // a bit for each thread
    long long number, start;
};

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

// `alive`, unless one of kept[begin:end] suppresses the box.
template <int THREADS>
__device__ bool survives(Chunk<THREADS>& chunk, const Box* kept, long long begin, long long end, Box box, Real area,
                         Real threshold, bool alive) {
    for (long long first = begin; first < end; first += THREADS) {
        int count = (int)min((long long)THREADS, end - first);
        __syncthreads();  // the tile may still be read, and kept boxes be written
        if (threadIdx.x < count) chunk.tile.put(threadIdx.x, kept[first + threadIdx.x]);
        __syncthreads();
        for (int i = 0; alive && i < count; ++i) alive = !chunk.tile.suppresses(i, box, area, threshold);
    }
    return alive;
}

// The boxes of better rank in the chunk that would suppress this thread's box: a bit for each.
template <int THREADS>
struct Rivals {
    unsigned words[THREADS / 32];

    __device__ __forceinline__ Rivals(Chunk<THREADS>& chunk, Box box, Real area, Real threshold) {
        __syncthreads();  // the tile may still be read
        chunk.tile.put(threadIdx.x, box);
        __syncthreads();
#pragma unroll  // so that `words` lies in registers
        for (int word = 0; word < THREADS / 32; ++word) {
            words[word] = 0;
            if (word > warp()) continue;
#pragma unroll 4
            for (int bit = 0; bit < 32; ++bit) {
                int i = 32 * word + bit;
                if (i < threadIdx.x && chunk.tile.may_suppress(i, box, area, threshold)) words[word] |= 1u << bit;
            }
            for (unsigned rest = words[word]; rest; rest &= rest - 1) {
                unsigned lowest = rest & -rest;
                int i = 32 * word + __popc(lowest - 1);
                if (!chunk.tile.suppresses(i, box, area, threshold)) words[word] ^= lowest;
            }
        }
    }

    // Whether this thread's box is kept, if the chunk holds the boxes that are alive. Each warp settles its own 32 boxes
    // once those before are settled: it keeps who has no kept rival, again and again, until nothing changes. The first
    // n boxes are right after n rounds at most, so this ends, and it is the greedy answer.
    __device__ __forceinline__ bool settle(Chunk<THREADS>& chunk, bool alive) const {
#pragma unroll
        for (int word = 0; word < THREADS / 32; ++word) {
            if (word == warp()) {
                unsigned keep = __ballot_sync(ALL, alive), before;
                do {
                    before = keep;
                    keep = __ballot_sync(ALL, alive && !(words[word] & keep));
                } while (keep != before);
                alive = keep >> lane() & 1;
                if (lane() == 0) chunk.words[word] = keep;
            }
            __syncthreads();
            if (word < warp() && words[word] & chunk.words[word]) alive = false;
        }
        return alive;
    }
};

// How many threads before this one, and how many in all, have `flag` set.
template <int WARPS>
__device__ int position_among(unsigned (&words)[WARPS], bool flag, int& total) {
    unsigned word = __ballot_sync(ALL, flag);
    if (lane() == 0) words[warp()] = word;
    __syncthreads();
    int before = __popc(word & ((1u << lane()) - 1));
    total = 0;
    for (int i = 0; i < WARPS; ++i) {
        if (i == warp()) before += total;
        total += __popc(words[i]);
    }
    return before;
}

// ------------------------------------------------------------------------------------------- one block does it all

struct Sorted {
    Key keys[BLOCK_LIMIT];
    int indices[BLOCK_LIMIT];
};

// Bitonic sort by (key, index) of the first `size` entries, a power of two.
__device__ void sort(Sorted& sorted, int size) {
    for (int length = 2; length <= size; length *= 2) {
        for (int stride = length / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < size / 2; pair += BLOCK_THREADS) {
                int i = 2 * pair - pair % stride, j = i + stride;
                Key a = sorted.keys[i], b = sorted.keys[j];
                int index_a = sorted.indices[i], index_b = sorted.indices[j];
                bool descending = i & length, behind = a > b || (a == b && index_a > index_b);
                if (behind != descending) {
                    sorted.keys[i] = b, sorted.keys[j] = a;
                    sorted.indices[i] = index_b, sorted.indices[j] = index_a;
                }
            }
        }
    }
    __syncthreads();
}

// All of nms for length <= BLOCK_LIMIT boxes: indices in rank order to keep[:size], then -1; their number to count[0].
// idxs may be null. `kept` has room for `length` boxes.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1)
nms_block(const void* boxes, long long box_dtype, const void* scores, long long score_dtype, const void* idxs,
          long long idx_dtype, long long length, double iou_threshold, double score_threshold, Box* kept,
          long long* keep, long long size, long long* count) {
    SHARED(Sorted, sorted);
    SHARED(Chunk<BLOCK_THREADS>, chunk);
    Real threshold = real(iou_threshold);
    int room = 1;
    while (room < length) room *= 2;
    Key limit = key_limit(score_threshold);
    for (int i = threadIdx.x; i < room; i += BLOCK_THREADS) {
        sorted.keys[i] = i < length ? key_above(scores, i, score_dtype, limit) : NOT_RANKED;
        sorted.indices[i] = i;
    }
    sort(sorted, room);
    long long found = 0;
    for (int first = 0; first < length && found < size; first += BLOCK_THREADS) {
        int rank = first + threadIdx.x;
        bool alive = rank < length && sorted.keys[rank] != NOT_RANKED;
        long long index = alive ? sorted.indices[rank] : 0;
        Box box = box_of(boxes, index, box_dtype, idxs ? label_of(idxs, index, idx_dtype) : 0);
        Real area = (box.x2 - box.x1) * (box.y2 - box.y1);
        alive = survives(chunk, kept, 0, found, box, area, threshold, alive);
        alive = Rivals<BLOCK_THREADS>(chunk, box, area, threshold).settle(chunk, alive);
        int total, position = position_among(chunk.words, alive, total);
        if (alive) kept[found + position] = box;
        if (alive && found + position < size) keep[found + position] = index;
        found += total;
    }
    found = min(found, size);
    for (long long i = found + threadIdx.x; i < size; i += BLOCK_THREADS) keep[i] = -1;
    if (threadIdx.x == 0) *count = found;
}

// ------------------------------------------------------------------------------------------------- many blocks

// keys[i]: where box i ranks.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
nms_keys(const void* scores, long long dtype, long long length, double score_threshold, Key* keys) {
    long long i = (long long)blockIdx.x * BLOCK_THREADS + threadIdx.x;
    if (i < length) keys[i] = key_above(scores, i, dtype, key_limit(score_threshold));
}

// labels[rank]: the class of the box of that rank.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
nms_labels(const void* idxs, long long dtype, const long long* order, long long length, Label* labels) {
    long long rank = (long long)blockIdx.x * BLOCK_THREADS + threadIdx.x;
    if (rank < length) labels[rank] = label_of(idxs, order[rank], dtype);
}

// What one chunk tells the next: 1 + the number of boxes kept so far in its last segment; 0 until it is known.
__device__ long long told(const long long* states, long long chunk) { return ((const volatile long long*)states)[chunk]; }

// The boxes with their ranks: order[rank] is the index of a box. For classes, members[position] is a rank, labels[rank]
// the class, and positions of one class follow each other; both are null where there is one class.
struct Ranked {
    const void* boxes;
    long long dtype;
    const long long *order, *members;
    const Label* labels;

    __device__ long long rank(long long position) const { return members ? members[position] : position; }
    __device__ Label label(long long position) const { return labels ? labels[rank(position)] : 0; }

    // The first position with a label that is not less than the given one, at most `end`.
    __device__ long long start_of(Label label_, long long end) const {
        long long begin = 0;
        while (begin < end) {
            long long middle = begin + (end - begin) / 2;
            if (label(middle) < label_) begin = middle + 1;
            else end = middle;
        }
        return begin;
    }
};

// Sets flags[rank] to whether the box of that rank is kept, and adds the kept ones to counts[rank / COMPACT_THREADS].
// A segment stops being searched once `limit` of its boxes are kept. ticket and states start as 0. `kept` has room for
// `length` boxes: a segment lists those it keeps from its own start on.
extern "C" __global__ void __launch_bounds__(CHAIN_THREADS, sizeof(T) == 4 ? 2 : 1)
nms_chain(const void* boxes, long long dtype, const Key* keys, const long long* order, const long long* members,
          const Label* labels, long long length, double iou_threshold, long long limit, unsigned long long* ticket,
          long long* states, Box* kept, unsigned char* flags, unsigned long long* counts) {
    SHARED(Chunk<CHAIN_THREADS>, chunk);
    Ranked ranked = {boxes, dtype, order, members, labels};
    Real threshold = real(iou_threshold);
    // Chunks are numbered as blocks start, so that those a block waits for have started before it.
    if (threadIdx.x == 0) chunk.number = atomicAdd(ticket, 1ull);
    __syncthreads();
    long long number = chunk.number, first = number * CHAIN_THREADS;
    long long position = first + threadIdx.x, end = min(first + CHAIN_THREADS, length);

    bool present = position < length, keep = false;
    long long rank = present ? ranked.rank(position) : 0, index = ranked.order[rank];
    bool alive = present && keys[index] != NOT_RANKED;
    Label first_label = ranked.label(first), last_label = ranked.label(end - 1);
    Box box = box_of(boxes, index, dtype, present ? ranked.label(position) : last_label);
    Real area = (box.x2 - box.x1) * (box.y2 - box.y1);
    Rivals<CHAIN_THREADS> rivals(chunk, box, area, threshold);

    bool continued = number > 0 && ranked.label(first - 1) == first_label;  // the first segment began before
    bool last_continued = continued && first_label == last_label;
    bool waits = continued && box.label == first_label;
    long long taken = 0;  // boxes that the first segment has kept before

    // Writes the boxes that the last segment keeps behind `before` others, and tells the next chunk.
    auto publish = [&](long long start, long long before) {
        bool listed = keep && box.label == last_label;
        int total, place = position_among(chunk.words, listed, total);
        if (listed) kept[start + before + place] = box;
        __syncthreads();  // all have written before one tells
        if (threadIdx.x == 0) {
            __threadfence();
            ((volatile long long*)states)[number] = 1 + before + total;
        }
    };

    keep = rivals.settle(chunk, alive && !waits);
    if (!last_continued) publish(first + __syncthreads_count(present && box.label != last_label), 0);
    if (continued) {
        if (threadIdx.x == 0) chunk.start = ranked.start_of(first_label, first);
        __syncthreads();
        long long start = chunk.start;
        bool candidate = alive && waits;
        for (long long done = start / CHAIN_THREADS; done < number;) {
            // Chunks publish in order, so as many as are seen to be published are the next ones.
            long long next = done + threadIdx.x;
            bool seen = next < number && told(states, next) != 0;
            if (seen) __threadfence();  // what it tells of is read behind the barrier
            int ready = __syncthreads_count(seen);
            if (ready == 0) {
                PAUSE();
                continue;
            }
            done += ready;
            long long available = told(states, done - 1) - 1;
            candidate = survives(chunk, kept + start, taken, min(available, limit), box, area, threshold, candidate);
            taken = available;
        }
        keep |= rivals.settle(chunk, candidate && taken < limit);
        if (last_continued) publish(start, taken);
    }
    if (present) flags[rank] = keep;
    if (keep) atomicAdd(counts + rank / COMPACT_THREADS, 1ull);
}

using Words = unsigned[COMPACT_THREADS / 32];
using Count = unsigned long long;

// Indices of the flagged boxes in rank order to keep[:size], then -1; their number to count[0].
extern "C" __global__ void __launch_bounds__(COMPACT_THREADS)
nms_compact(const long long* order, const unsigned char* flags, const unsigned long long* counts, long long length,
            long long* keep, long long size, long long* count) {
    SHARED(Words, words);
    SHARED(Count, before);
    SHARED(Count, all);
    if (threadIdx.x == 0) before = all = 0;
    __syncthreads();
    Count mine = 0, total = 0;
    for (long long i = threadIdx.x; i < (length + COMPACT_THREADS - 1) / COMPACT_THREADS; i += COMPACT_THREADS) {
        total += counts[i];
        if (i < blockIdx.x) mine += counts[i];
    }
    if (mine) atomicAdd(&before, mine);
    if (total) atomicAdd(&all, total);
    __syncthreads();
    long long i = (long long)blockIdx.x * COMPACT_THREADS + threadIdx.x, found = min((long long)all, size);
    bool flag = i < length && flags[i];
    int here;
    long long place = before + position_among(words, flag, here);
    if (flag && place < size) keep[place] = order[i];
    if (i >= found && i < size) keep[i] = -1;
    if (i == 0) *count = found;
}
