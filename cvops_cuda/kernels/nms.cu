// Greedy non-maximum suppression [1]: in rank order, a box is kept unless a kept one of better rank overlaps it by more
// than a threshold. Exactly the CPU backend's boxes: every decision is taken on `Real`.
//
// Up to BLOCK_THREADS boxes, `nms_block` does everything, the sort included, in one launch. A thread owns a box. Again
// and again, the best 32 boxes that are left are compared with each other, and the others with those of them that are
// kept.
//
// Beyond, boxes are taken in batches, in rank order, and what a batch costs does not depend on those before it:
//   ranks   `nms_rank` counts, for each box, those before it, on all multiprocessors: up to some 16 000 boxes that is
//           no slower than a radix sort, and one launch. `nms_order` then writes the boxes in order. Above, `nms_keys`
//           (and `nms_labels`), a radix sort, and `nms_gather` for each batch.
//   near    A box that is suppressed by one kept in an earlier batch leaves the batch. `nms_near` finds a suppressor
//           in a hash table of kept boxes, by size and position (Grid in nms.cuh), so that the time is near-linear.
//   mask    The pairs of boxes that are left, a bit for each: all multiprocessors take part, and the bits stay in L2.
//   chain   A batch is decided in chunks, each by one block, in order: a block publishes which of its boxes are kept, a
//           few words of bits, and later blocks wait for that. All other work of a block is done before it waits, so
//           that a link of the chain is short. One block for the whole batch would read the whole mask alone.
// `nms_compact` writes the kept indices in rank order. No launch depends on the data.
//
// Classes are segments: boxes with equal labels lie together, in rank order, and only those are compared. A chunk waits
// for another one only if a class spans both.
//
// [1] A. Neubeck and L. Van Gool, "Efficient Non-Maximum Suppression", ICPR 2006.

#include "nms.cuh"

constexpr int BLOCK_THREADS = CVOPS_BLOCK_THREADS;
constexpr int RANK_THREADS = CVOPS_RANK_THREADS, RANK_OTHERS = CVOPS_RANK_OTHERS;
constexpr int SUPPRESSORS = CVOPS_SUPPRESSORS;  // boxes with which a block of nms_mask compares a chunk
constexpr int NEAR_THREADS = CVOPS_NEAR_THREADS, COMPACT_THREADS = CVOPS_COMPACT_THREADS;

// ------------------------------------------------------------------------------------------- one block does it all

struct Sorted {
    Key keys[BLOCK_THREADS];
    int indices[BLOCK_THREADS];
};

// Bitonic sort by (key, index) of an entry for each thread; their number is a power of two.
__device__ void sort(Sorted& sorted) {
    int size = blockDim.x;
    for (int length = 2; length <= size; length *= 2) {
        for (int stride = length / 2; stride > 0; stride /= 2) {
            __syncthreads();
            if (threadIdx.x >= size / 2) continue;
            int i = 2 * threadIdx.x - threadIdx.x % stride, j = i + stride;
            Key a = sorted.keys[i], b = sorted.keys[j];
            int index_a = sorted.indices[i], index_b = sorted.indices[j];
            bool descending = i & length, behind = a > b || (a == b && index_a > index_b);
            if (behind != descending) {
                sorted.keys[i] = b, sorted.keys[j] = a;
                sorted.indices[i] = index_b, sorted.indices[j] = index_a;
            }
        }
    }
    __syncthreads();
}

// The best boxes that are undecided, as many as a warp has lanes.
struct Candidates {
    Boxes<32> boxes;
    unsigned suppressors[32];  // of each box: a bit for each of the others that would suppress it
    unsigned words[BLOCK_THREADS / 32];
};

// All of nms for length <= blockDim.x boxes: indices in rank order to keep[:size], then -1; their number to count[0].
// idxs may be null. blockDim.x is a power of two from 32 on.
struct NmsBlock {
    const void* boxes;
    long long boxes_dtype;
    const void* scores;
    long long scores_dtype;
    const void* idxs;
    long long idxs_dtype, length;
    double iou_threshold, score_threshold;
    long long* keep;
    long long size;
    long long* count;
};

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1) nms_block(const NmsBlock args) {
    SHARED(Sorted, sorted);
    SHARED(Candidates, undecided);
    Real threshold = real(args.iou_threshold);
    int rank = threadIdx.x, warps = blockDim.x / 32;
    sorted.keys[rank] = rank < args.length
                            ? key_above(args.scores, rank, args.scores_dtype, key_limit(args.score_threshold))
                            : NOT_RANKED;
    sorted.indices[rank] = rank;
    sort(sorted);
    bool alive = sorted.keys[rank] != NOT_RANKED;
    long long index = alive ? sorted.indices[rank] : 0;
    Box box = box_of(args.boxes, index, args.boxes_dtype, args.idxs ? label_of(args.idxs, index, args.idxs_dtype) : 0);
    Real area = area_of(box);

    long long kept_before = 0;
    while (kept_before < args.size) {
        unsigned word = __ballot_sync(ALL, alive);
        if (lane() == 0) undecided.words[warp()] = word;
        __syncthreads();
        // The number of boxes alive up to each warp, in the lane of its number.
        int up_to = sum_up_to(lane() < warps ? __popc(undecided.words[lane()]) : 0);
        int left = __shfl_sync(ALL, up_to, 31), candidates = min(left, 32);
        int before = __shfl_sync(ALL, up_to, warp()) - __popc(word & ~lower_lanes());  // alive boxes of better rank
        if (left == 0) break;
        bool is_candidate = alive && before < candidates;
        if (is_candidate) undecided.boxes.put(before, box);
        __syncthreads();
        for (int i = warp(); i < candidates; i += warps) {
            Box candidate = undecided.boxes.box(i);
            bool suppressor =
                lane() < i && undecided.boxes.suppresses(lane(), candidate, undecided.boxes.area[i], threshold);
            unsigned suppressors = __ballot_sync(ALL, suppressor);
            if (lane() == 0) undecided.suppressors[i] = suppressors;
        }
        __syncthreads();
        // Every candidate without a kept suppressor is kept, and this is repeated until nothing changes. After n rounds
        // the first n candidates are right, so this ends, and the answer is the greedy one.
        bool candidate = lane() < candidates;
        unsigned suppressors = candidate ? undecided.suppressors[lane()] : 0, kept = __ballot_sync(ALL, candidate),
                 previous;
        do {
            previous = kept;
            kept = __ballot_sync(ALL, candidate && !(suppressors & kept));
        } while (kept != previous);
        if (is_candidate && kept >> before & 1) {
            long long position = kept_before + __popc(kept & ((1u << before) - 1));
            if (position < args.size) args.keep[position] = index;
        }
        alive = alive && !is_candidate;
        for (unsigned rest = kept; alive && rest; rest &= rest - 1)
            alive = !undecided.boxes.suppresses(__ffs(rest) - 1, box, area, threshold);
        kept_before += __popc(kept);
    }
    kept_before = min(kept_before, args.size);
    for (long long i = kept_before + threadIdx.x; i < args.size; i += blockDim.x) args.keep[i] = -1;
    if (threadIdx.x == 0) *args.count = kept_before;
}

// ----------------------------------------------------------------------------------------- ranking up to one batch

struct Keys {
    Key keys[RANK_OTHERS];
    Label labels[RANK_OTHERS];
};

enum Ties { FIRST, LAST, BY_INDEX };  // where equal keys of the others rank: before this box, behind it, or by index

// Count the others that rank before this box, and with classes also those of a lesser class, or of the same class that
// rank before it.
template <Ties TIES>
__device__ void count_before(const Keys& others, int count, int index, Key key, Label label, bool classes, int& ranks,
                             int& positions) {
    for (int j = 0; j < count; ++j) {
        Key other = others.keys[j];
        bool before = TIES == FIRST ? other <= key : other < key || (TIES == BY_INDEX && other == key && j < index);
        ranks += before;
        if (classes) positions += others.labels[j] < label || (others.labels[j] == label && before);
    }
}

// The class of a box. Boxes that do not take part get the last class, so that they come behind all others.
__device__ Label label_if_ranked(const Ranking& ranking, long long i, Key key) {
    return key == NOT_RANKED ? ~(Label)0 : ranking.label(i);
}

// ranks[i]: how many boxes rank before box i. With classes, positions[i]: how many boxes are of a lesser class, or of
// the class of box i and rank before it. Both start as 0. A block compares RANK_THREADS boxes with RANK_OTHERS others.
struct NmsRank {
    Ranking ranking;
    Word* ranks;
    Word* positions;
};

extern "C" __global__ void __launch_bounds__(RANK_THREADS) nms_rank(const NmsRank args) {
    SHARED(Keys, others);
    int across = (args.ranking.length + RANK_THREADS - 1) / RANK_THREADS;
    int own = blockIdx.x % across * RANK_THREADS, first = blockIdx.x / across * RANK_OTHERS;
    int i = own + threadIdx.x, count = min(RANK_OTHERS, (int)args.ranking.length - first);
    Key limit = args.ranking.limit();
    for (int j = threadIdx.x; j < count; j += RANK_THREADS) {
        others.keys[j] = args.ranking.key(first + j, limit);
        others.labels[j] = label_if_ranked(args.ranking, first + j, others.keys[j]);
    }
    __syncthreads();
    if (i >= args.ranking.length) return;
    Key key = args.ranking.key(i, limit);
    Label label = label_if_ranked(args.ranking, i, key);
    int rank = 0, position = 0;
    if (first > own)
        count_before<LAST>(others, count, 0, key, label, args.ranking.idxs, rank, position);
    else if (first + RANK_OTHERS <= own)
        count_before<FIRST>(others, count, 0, key, label, args.ranking.idxs, rank, position);
    else
        count_before<BY_INDEX>(others, count, i - first, key, label, args.ranking.idxs, rank, position);
    atomicAdd(args.ranks + i, (Word)rank);
    if (args.ranking.idxs) atomicAdd(args.positions + i, (Word)position);
}

// Put the boxes in order: order[rank] is the index of a box. All that take part are one batch: count[0] candidates in
// the order of their positions, and their ranks. positions and idxs may be null; count starts as 0.
struct NmsOrder {
    const void* boxes;
    long long boxes_dtype;
    Ranking ranking;
    const Word* ranks;
    const Word* positions;
    long long* order;
    Box* candidates;
    long long* candidate_ranks;
    Word* count;
};

extern "C" __global__ void __launch_bounds__(RANK_THREADS) nms_order(const NmsOrder args) {
    long long i = (long long)blockIdx.x * RANK_THREADS + threadIdx.x;
    bool takes_part = i < args.ranking.length && args.ranking.key(i, args.ranking.limit()) != NOT_RANKED;
    if (takes_part) {
        long long rank = args.ranks[i], position = args.positions ? args.positions[i] : rank;
        args.order[rank] = i;
        args.candidates[position] = box_of(args.boxes, i, args.boxes_dtype, args.ranking.label(i));
        args.candidate_ranks[position] = rank;
    }
    int here = __syncthreads_count(takes_part);
    if (threadIdx.x == 0) atomicAdd(args.count, (Word)here);
}

// ------------------------------------------------------------------------------------- ranking for several batches

// keys[i]: the number by which box i ranks, smaller for a larger score.
struct NmsKeys {
    Ranking ranking;
    Key* keys;
};

extern "C" __global__ void __launch_bounds__(RANK_THREADS) nms_keys(const NmsKeys args) {
    long long i = (long long)blockIdx.x * RANK_THREADS + threadIdx.x;
    if (i < args.ranking.length) args.keys[i] = args.ranking.key(i, args.ranking.limit());
}

// labels[rank]: the class of the box of that rank.
struct NmsLabels {
    const void* idxs;
    long long idxs_dtype;
    const long long* order;
    long long length;
    Label* labels;
};

extern "C" __global__ void __launch_bounds__(RANK_THREADS) nms_labels(const NmsLabels args) {
    long long rank = (long long)blockIdx.x * RANK_THREADS + threadIdx.x;
    if (rank < args.length) args.labels[rank] = label_of(args.idxs, args.order[rank], args.idxs_dtype);
}

// -------------------------------------------------------------------------------------- boxes kept in earlier batches

// dropped[i]: whether a box in the table suppresses the one at position begin + i. A warp looks for the suppressors of
// a box, and each lane takes a pair of size buckets: most time is spent waiting for one box of a chain after the other.
struct NmsNear {
    Ranked ranked;
    long long begin, end;
    double iou_threshold;
    Grid grid;
    Table table;
    unsigned char* dropped;
};

extern "C" __global__ void __launch_bounds__(NEAR_THREADS, 2) nms_near(const NmsNear args) {
    Ranked ranked = args.ranked;
    Table table = args.table;
    Grid grid = args.grid;
    long long position = args.begin + (long long)blockIdx.x * (NEAR_THREADS / 32) + warp();
    if (position >= args.end) return;
    bool suppressed = false;
    if (ranked.takes_part(position) && ranked.meets_earlier(position, args.begin)) {
        Box box = ranked.box(position);
        Role role(box, grid);
        if (role.hashed) {
            long long a = grid.size_bucket(role.width * grid.t), c = grid.size_bucket(role.height * grid.t);
            long long across = grid.size_bucket(role.width / grid.t) - a + 1,
                      down = grid.size_bucket(role.height / grid.t) - c + 1;
            for (long long first = 0; first < across * down && !suppressed; first += 32) {
                long long pair = first + lane();
                bool hit = pair < across * down && table.suppresses(box, role, a + pair / down, c + pair % down, grid,
                                                                    real(args.iou_threshold));
                suppressed = __any_sync(ALL, hit);
            }
        }
    }
    if (lane() == 0) args.dropped[position - args.begin] = suppressed;
}

// ----------------------------------------------------------------------------------------------------- one batch

// A word for each lane of a warp that other blocks publish. It waits until all of them are there, that is not 0.
__device__ Word await_all(const Word* word) {
    Word value;
    while (!__all_sync(ALL, (value = *(const volatile Word*)word) != 0)) PAUSE();
    return value;
}

struct Gathering {
    Boxes<CHUNK> boxes;
    unsigned words[WORDS];
    Word number, before;
};

// Gather a batch: of the boxes at the positions from begin to end, those that take part and are suppressed by none of
// an earlier batch. They go to `candidates`, their ranks to candidate_ranks, their number to count[0]. dropped, kept,
// listed and listed_counts may be null. Each block publishes 1 + its count in found_counts; these and ticket start as
// 0. Without classes no box takes part once `limit` boxes are kept.
struct NmsGather {
    Ranked ranked;
    long long begin, end;
    double iou_threshold;
    long long limit;
    Grid grid;
    const unsigned char* dropped;
    const Box* kept;
    const long long* listed;
    const Word* listed_counts;
    const Word* total;
    Word* ticket;
    Word* found_counts;
    Box* candidates;
    long long* candidate_ranks;
    long long* count;
};

extern "C" __global__ void __launch_bounds__(CHUNK, 1) nms_gather(const NmsGather args) {
    SHARED(Gathering, shared);
    Ranked ranked = args.ranked;
    Grid grid = args.grid;
    Real threshold = real(args.iou_threshold);
    // Chunks are numbered as blocks start, so that those a block waits for have started before it.
    if (threadIdx.x == 0) shared.number = atomicAdd(args.ticket, (Word)1), shared.before = 0;
    __syncthreads();
    long long number = shared.number, position = args.begin + CHUNK * number + threadIdx.x;
    bool alive = position < args.end && ranked.takes_part(position) && (args.ranked.labels || *args.total < args.limit);
    if (alive && args.dropped && args.dropped[position - args.begin]) alive = false;
    Box box = ranked.box(min(position, args.end - 1));
    Real area = area_of(box);

    bool compares = alive && args.listed && Role(box, grid).listed && ranked.meets_earlier(position, args.begin);
    long long chunks = args.listed && __syncthreads_or(compares) ? (args.begin + CHUNK - 1) / CHUNK : 0;
    for (long long some = 0; some < chunks; some += CHUNK) {
        if (!__syncthreads_or(some + threadIdx.x < chunks && args.listed_counts[some + threadIdx.x])) continue;
        for (long long chunk = some; chunk < min(some + CHUNK, chunks); ++chunk) {
            int here = args.listed_counts[chunk];
            if (here == 0) continue;
            __syncthreads();  // the boxes may still be read
            if (threadIdx.x < here) shared.boxes.put(threadIdx.x, args.kept[args.listed[CHUNK * chunk + threadIdx.x]]);
            __syncthreads();
            for (int i = 0; compares && i < here; ++i)
                if (shared.boxes.suppresses(i, box, area, threshold)) alive = compares = false;
        }
    }

    int here, own = position_among(shared.words, alive, here);
    if (threadIdx.x == 0) *(volatile Word*)(args.found_counts + number) = 1 + here;
    for (long long earlier = 0; warp() == 0 && earlier < number; earlier += 32) {
        Word earlier_count = await_all(args.found_counts + min(earlier + lane(), number - 1)) - 1;
        if (earlier + lane() < number) atomicAdd(&shared.before, earlier_count);
    }
    __syncthreads();
    long long start = shared.before;
    if (alive) args.candidates[start + own] = box, args.candidate_ranks[start + own] = ranked.rank(position);
    if (threadIdx.x == 0 && number == gridDim.x - 1) *args.count = start + here;
}

// Whether two chunks of a batch, earlier <= chunk, may have boxes of the same class.
__device__ bool share_a_class(const Box* candidates, long long earlier, long long chunk) {
    return earlier == chunk || candidates[CHUNK * (earlier + 1) - 1].label == candidates[CHUNK * chunk].label;
}

// Where the mask has the bits of two chunks, earlier <= chunk: for each box of the later chunk WORDS words, with the
// first words of all boxes first.
__device__ long long words_of(long long earlier, long long chunk) {
    return (chunk * (chunk + 1) / 2 + earlier) * WORDS * CHUNK;
}

// The mask: for each box of a batch, a bit for each box before it that would suppress it. Nothing is written for two
// chunks without a class in common.
struct NmsMask {
    const Box* candidates;
    const long long* count;
    double iou_threshold;
    unsigned* mask;
};

extern "C" __global__ void __launch_bounds__(CHUNK, 1) nms_mask(const NmsMask args) {
    SHARED(Boxes<SUPPRESSORS>, suppressors);
    constexpr int PARTS = CHUNK / SUPPRESSORS;
    long long length = *args.count, part = blockIdx.x % PARTS, earlier = blockIdx.x / PARTS, chunk = 0;
    while (earlier > chunk) earlier -= ++chunk;
    long long first = CHUNK * earlier + SUPPRESSORS * part, position = CHUNK * chunk + threadIdx.x;
    if (CHUNK * chunk >= length || !share_a_class(args.candidates, earlier, chunk)) return;
    Real threshold = real(args.iou_threshold);
    if (threadIdx.x < SUPPRESSORS) suppressors.put(threadIdx.x, args.candidates[min(first + threadIdx.x, length - 1)]);
    __syncthreads();
    Box box = args.candidates[min(position, length - 1)];
    Real area = area_of(box);
    for (int word = 0; word < SUPPRESSORS / 32; ++word) {
        long long before = position - first - 32 * word;  // suppressors in this word that rank before the box
        unsigned bits = 0;
        if (before > 0) {
#pragma unroll 8
            for (int bit = 0; bit < 32; ++bit)
                if (suppressors.may_suppress(32 * word + bit, box, area, threshold)) bits |= 1u << bit;
            if (before < 32) bits &= (1u << before) - 1;
            for (unsigned rest = bits; rest; rest &= rest - 1) {
                int bit = __ffs(rest) - 1;
                if (!suppressors.suppresses(32 * word + bit, box, area, threshold)) bits ^= 1u << bit;
            }
        }
        args.mask[words_of(earlier, chunk) + (SUPPRESSORS / 32 * part + word) * CHUNK + threadIdx.x] = bits;
    }
}

// The chain: which boxes of a batch are kept. A chunk is a block, and a box a thread of it. Three blocks in time, where
// a class goes through all three; * is where a block publishes what it keeps, and from * to * is a link of the chain:
//
//     block 0   settle own *  hand to table
//     block 1   settle own    await 0 |      settle own *  hand to table
//     block 2   settle own    await 0 | ...  await 1 |     settle own *  hand to table
//
// Each settles at once what is of a class that begins in it, and after the others what is of a class that began before:
//
//     def chain(labels, suppressors, CHUNK):  # of each position: its class, and the set of those before it that
//         kept = set()                        # would suppress it
//         for first in range(0, len(labels), CHUNK):
//             chunk = range(first, min(first + CHUNK, len(labels)))
//             continued = first > 0 and labels[first - 1] == labels[first]
//             candidates = [i for i in chunk if continued and labels[i] == labels[first]]
//             for i in sorted(set(chunk) - set(candidates)):  # settle_own
//                 if not suppressors[i] & kept:
//                     kept.add(i)
//             for earlier in range(0, first, CHUNK):  # await_earlier
//                 published = kept & set(range(earlier, earlier + CHUNK))
//                 candidates = [i for i in candidates if not suppressors[i] & published]
//             for i in candidates:  # settle_own
//                 if not suppressors[i] & kept:
//                     kept.add(i)
//         return kept
//
// The kernel sets flags[rank] where the box of that rank is kept, adds the kept ones to counts[rank / COMPACT_THREADS]
// and to total[0], and hands those that later batches can meet to the table, if `kept` of it is not null: positions
// begin + i for candidates[i], the next batch beginning at `end`. ticket, states[:WORDS * blocks], flags and counts
// start as 0.
struct NmsChain {
    const Box* candidates;
    const long long* candidate_ranks;
    const long long* count;
    const unsigned* mask;
    Word* ticket;
    Word* states;
    unsigned char* flags;
    Word* counts;
    const long long* members;
    const Label* labels;
    long long begin, end;
    Grid grid;
    Table table;
    long long* listed;
    Word* listed_counts;
    Word* total;
};

struct Settling {
    unsigned words[WORDS], published[2][WORDS];  // published: two, used alternately, so that one barrier is enough
    Word number;
};

// Whether this thread's box is still a candidate when all kept boxes of earlier chunks are known. The mask of a chunk
// is read before its kept boxes are waited for.
__device__ __forceinline__ bool await_earlier(const NmsChain& args, unsigned (&published)[2][WORDS], long long number,
                                              bool candidate) {
    int parity = 0;
    for (long long earlier = 0; earlier < number; ++earlier) {
        if (!share_a_class(args.candidates, earlier, number)) continue;
        unsigned words[WORDS], hit = 0;
#pragma unroll
        for (int word = 0; word < WORDS; ++word)
            words[word] = args.mask[words_of(earlier, number) + word * CHUNK + threadIdx.x];
        unsigned* kept = published[parity ^= 1];
        if (warp() == 0) kept[lane() % WORDS] = await_all(args.states + WORDS * earlier + lane() % WORDS);
        __syncthreads();
#pragma unroll
        for (int word = 0; word < WORDS; ++word) hit |= words[word] & kept[word];
        if (hit) candidate = false;
    }
    return candidate;
}

// Hand the kept boxes of a chunk to later batches: those of the class that goes on there.
__device__ __forceinline__ void hand_to_table(const NmsChain& args, unsigned (&words)[WORDS], long long number, Box box,
                                              bool keep) {
    Ranked ranked = {nullptr, 0, nullptr, nullptr, args.members, args.labels};
    Grid grid = args.grid;
    Table table = args.table;
    Role role(box, grid);
    bool met = keep && ranked.label(args.end) == box.label;
    long long position = args.begin + CHUNK * number + threadIdx.x, chunk = args.begin / CHUNK + number;
    if (met) args.table.kept[position] = box;
    if (met && role.hashed) table.insert(box, role, position, grid);
    int here, own = position_among(words, met && role.listed, here);
    if (met && role.listed) args.listed[CHUNK * chunk + own] = position;
    int all = __syncthreads_count(keep);
    if (threadIdx.x == 0) args.listed_counts[chunk] = here, atomicAdd(args.total, (Word)all);
}

extern "C" __global__ void __launch_bounds__(CHUNK, 1) nms_chain(const NmsChain args) {
    SHARED(Settling, shared);
    // Chunks are numbered as blocks start, so that those a block waits for have started before it.
    if (threadIdx.x == 0) shared.number = atomicAdd(args.ticket, (Word)1);
    __syncthreads();
    long long number = shared.number, first = CHUNK * number, length = *args.count;
    if (first >= length) return;
    long long position = first + threadIdx.x, last = min(first + CHUNK, length) - 1;
    bool alive = position <= last;
    Box box = args.candidates[min(position, last)];

    unsigned suppressors[WORDS];
#pragma unroll
    for (int word = 0; word < WORDS; ++word)
        suppressors[word] = word < warp() ? args.mask[words_of(number, number) + word * CHUNK + threadIdx.x] : 0;
    // Not suppressors[warp()]: an index that is no constant would put all of `suppressors` into memory.
    unsigned own = args.mask[words_of(number, number) + warp() * CHUNK + threadIdx.x];
    Label first_label = args.candidates[first].label, last_label = args.candidates[last].label;
    bool continued = number > 0 && args.candidates[first - 1].label == first_label;  // the first class began before
    bool last_continued = continued && first_label == last_label;
    bool waits = continued && box.label == first_label;

    // A word of a state has the bits of 32 boxes and, above these, a bit that says that it is published: a single read
    // gives both. Of other classes than the last one of the chunk, bits may be missing: no later chunk needs them.
    auto publish = [&](bool keep) {
        unsigned word = __ballot_sync(ALL, keep);
        if (lane() == 0) *(volatile Word*)(args.states + WORDS * number + warp()) = 1ull << 32 | word;
    };

    bool keep = false;
    if (__syncthreads_or(alive && !waits)) keep = settle_own(shared.words, suppressors, own, alive && !waits);
    if (!last_continued) publish(keep);
    if (continued) {
        bool candidate = await_earlier(args, shared.published, number, alive && waits);
        keep |= settle_own(shared.words, suppressors, own, candidate);
        if (last_continued) publish(keep);
    }
    if (keep) {
        long long rank = args.candidate_ranks[position];
        args.flags[rank] = 1;
        atomicAdd(args.counts + rank / COMPACT_THREADS, (Word)1);
    }
    if (args.table.kept) hand_to_table(args, shared.words, number, box, keep);
}

using Words = unsigned[COMPACT_THREADS / 32];

// Indices of the flagged boxes in rank order to keep[:size], then -1; their number to count[0].
struct NmsCompact {
    const long long* order;
    const unsigned char* flags;
    const Word* counts;
    long long length;
    long long* keep;
    long long size;
    long long* count;
};

extern "C" __global__ void __launch_bounds__(COMPACT_THREADS) nms_compact(const NmsCompact args) {
    SHARED(Words, words);
    SHARED(Word, before);
    SHARED(Word, all);
    if (threadIdx.x == 0) before = all = 0;
    __syncthreads();
    Word mine = 0, total = 0;
    for (long long i = threadIdx.x; i < (args.length + COMPACT_THREADS - 1) / COMPACT_THREADS; i += COMPACT_THREADS) {
        total += args.counts[i];
        if (i < blockIdx.x) mine += args.counts[i];
    }
    if (mine) atomicAdd(&before, mine);
    if (total) atomicAdd(&all, total);
    __syncthreads();
    long long i = (long long)blockIdx.x * COMPACT_THREADS + threadIdx.x, found = min((long long)all, args.size);
    bool flag = i < args.length && args.flags[i];
    int here;
    long long own = before + position_among(words, flag, here);
    if (flag && own < args.size) args.keep[own] = args.order[i];
    if (i >= found && i < args.size) args.keep[i] = -1;
    if (i == 0) *args.count = found;
}
