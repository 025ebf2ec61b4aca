// From the scores of a head to detections: four kernels for a batch of images, whatever the scores.
//
//   scan      `multiclass_scan` reads each score once, where it lies. A block takes a part of an image's scores, in their
//             order in memory, and writes the keys and numbers of those that pass to the beginning of its own part of a
//             workspace: no block waits for another, and no schedule changes anything. `multiclass_best` does so with
//             the best class of each box.
//   rank      `multiclass_rank`, a block for each image: the candidates, put together, go through a radix sort by key,
//             whose work grows with their number and not with that of the scores; those over the limit are dropped, and
//             the others sorted once more, by class.
//   suppress  `multiclass_suppress`, a block for each image and class: CHUNK candidates at a time, best first, are
//             compared with those kept before and then settled among each other. It ends as soon as enough are kept.
//   write     `multiclass_write`, a block for each image: the flagged candidates by rank.
//
// The number of a candidate is box * C + class. Ties go to the lower number. A sort keeps the order of equals, and so
// only what is scanned box after box within each class has to be sorted by boxes first.

#include "nms.cuh"

constexpr int SCAN_THREADS = CVOPS_SCAN_THREADS, SCAN_ROUNDS = CVOPS_SCAN_ROUNDS;
constexpr int RANK_THREADS = CVOPS_RANK_THREADS, WRITE_THREADS = CVOPS_WRITE_THREADS;
constexpr int DIGITS = 256;  // values of the digit by which a pass sorts

using Number = unsigned;

// ------------------------------------------------------------------------------------------------------------- scan

// The scores (N, L, C) of the dtype `scores_dtype`: that of image n, box b and class c is element
// origin + n * strides[0] + b * strides[1] + c * strides[2]. objectness (N, L), floors (C,), for each class, may be
// null; `floor` for all is NaN where there is none.
struct Head {
    const void* scores;
    long long scores_dtype, origin, strides[3];
    const void* objectness;
    long long objectness_dtype;
    const void* floors;
    long long floors_dtype;
    double floor;
    long long length, classes;

    __device__ Real score(long long image, long long box, long long label) const {
        Real score = load(scores, origin + image * strides[0] + box * strides[1] + label * strides[2], scores_dtype);
        return objectness ? score * load(objectness, image * length + box, objectness_dtype) : score;
    }

    __device__ bool passes(Real score, long long label) const {
        return floors ? score > floor_of_class(label) : floor != floor || score > real(floor);
    }

    // The floor as the dtype of the scores has it: to nearest, ties to even.
    __device__ Real floor_of_class(long long label) const {
        double wide;
        if (floors_dtype == FLOAT64)
            wide = ((const double*)floors)[label];
        else
            convert(load(floors, label, floors_dtype).value, wide);
        if (scores_dtype == FLOAT64) return real(wide);
        float single;
        convert(wide, single);
        if (scores_dtype == FLOAT32) return real(single);
        // To round twice, to 24 bits and then to fewer, is to round once if the first time goes to an odd number.
        double back;
        convert(single, back);
        unsigned bits = bits_of(single);
        if (wide == wide && back != wide && bits % 2 == 0)
            bits += (back < 0 ? -back : back) < (wide < 0 ? -wide : wide) ? 1 : -1;
        single = with_bits(bits);
        return real(scores_dtype == FLOAT16 ? from_float16(to_float16(single)) : from_bfloat16(to_bfloat16(single)));
    }
};

// An image has `scanned` scores, or boxes where only the best class of each counts, and as much room for keys and
// numbers. Each of its `parts` writes the found[part] candidates from where it begins itself. By boxes: box after box
// within each class, else class after class within each box.
struct MulticlassScan {
    Head head;
    long long by_boxes, scanned, parts;
    Key* keys;
    Number* numbers;
    Number* found;
};

// Writes the candidates of a block, and their number. words: a bit for each thread, warp by warp and round by round;
// `passed` those of this thread, and pair_of(round, key, number) tells what to write. Those of a round come before
// those of the next.
template <int ROUNDS, class PairOf>
__device__ void write_part(const MulticlassScan& args, unsigned (&words)[ROUNDS][SCAN_THREADS / 32], unsigned passed,
                           PairOf pair_of) {
    if (!__syncthreads_or(passed)) {
        if (threadIdx.x == 0) args.found[blockIdx.x] = 0;
        return;
    }
    long long place =
        blockIdx.x / args.parts * args.scanned + blockIdx.x % args.parts * (long long)(SCAN_THREADS * ROUNDS);
    Number count = 0;
    for (int round = 0; round < ROUNDS; ++round)
        for (int i = 0; i < SCAN_THREADS / 32; ++i) {
            unsigned word = words[round][i];
            if (i == warp() && passed >> round & 1) {
                long long own = place + count + __popc(word & lower_lanes());
                pair_of(round, args.keys[own], args.numbers[own]);
            }
            count += __popc(word);
        }
    if (threadIdx.x == 0) args.found[blockIdx.x] = count;
}

using ScanWords = unsigned[SCAN_ROUNDS][SCAN_THREADS / 32];

extern "C" __global__ void __launch_bounds__(SCAN_THREADS) multiclass_scan(const MulticlassScan args) {
    SHARED(ScanWords, words);
    long long image = blockIdx.x / args.parts, part = blockIdx.x % args.parts;
    unsigned scanned = args.scanned, classes = args.head.classes, inner = args.by_boxes ? args.head.length : classes;
    unsigned first = part * SCAN_THREADS * SCAN_ROUNDS + threadIdx.x, passed = 0;
    unsigned outer_at = first / inner, inner_at = first % inner;
    for (int round = 0; round < SCAN_ROUNDS; ++round) {
        bool passes = false;
        if (first + round * SCAN_THREADS < scanned) {
            unsigned box = args.by_boxes ? inner_at : outer_at, label = args.by_boxes ? outer_at : inner_at;
            passes = args.head.passes(args.head.score(image, box, label), label);
        }
        unsigned word = __ballot_sync(ALL, passes);
        if (lane() == 0) words[round][warp()] = word;
        if (passes) passed |= 1u << round;
        inner_at += SCAN_THREADS % inner, outer_at += SCAN_THREADS / inner;
        if (inner_at >= inner) inner_at -= inner, ++outer_at;
    }
    write_part<SCAN_ROUNDS>(args, words, passed, [&](int round, Key& key, Number& number) {
        unsigned i = first + round * SCAN_THREADS;
        unsigned box = args.by_boxes ? i % inner : i / inner, label = args.by_boxes ? i / inner : i % inner;
        key = key_of(args.head.score(image, box, label)), number = box * classes + label;  // from the cache
    });
}

using BestWords = unsigned[1][SCAN_THREADS / 32];

// As multiclass_scan, of the best class of each box: the first of equals, and NaN only where there is nothing else.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS) multiclass_best(const MulticlassScan args) {
    SHARED(BestWords, words);
    long long image = blockIdx.x / args.parts, box = blockIdx.x % args.parts * SCAN_THREADS + threadIdx.x;
    Real best = {0};
    Number label = 0;
    bool passes = false;
    if (box < args.scanned) {
        best = args.head.score(image, box, 0);
        for (Number other = 1; other < args.head.classes; ++other) {
            Real score = args.head.score(image, box, other);
            if (score > best || (is_nan(best) && !is_nan(score))) best = score, label = other;
        }
        passes = args.head.passes(best, label);
    }
    unsigned word = __ballot_sync(ALL, passes);
    if (lane() == 0) words[0][warp()] = word;
    write_part<1>(args, words, passes,
                  [&](int, Key& key, Number& number) { key = key_of(best), number = box * args.head.classes + label; });
}

// ------------------------------------------------------------------------------------------------------------- rank

struct Sorting {
    unsigned counts[RANK_THREADS / 32][DIGITS], starts[DIGITS], words[RANK_THREADS / 32];
};

// The sum of `value` over the threads before this one, and over all.
__device__ unsigned sum_before(Sorting& shared, unsigned value, unsigned& total) {
    unsigned up_to = sum_up_to(value);
    if (lane() == 31) shared.words[warp()] = up_to;
    __syncthreads();
    unsigned before = up_to - value;
    total = 0;
    for (int i = 0; i < RANK_THREADS / 32; ++i) {
        if (i == warp()) before += total;
        total += shared.words[i];
    }
    return before;
}

struct Pairs {
    Key* keys;
    Number* numbers;
};

// Sorts `count` pairs by a digit of each, equals in their order. They end up in `pairs`, which may change places with
// `others`.
template <class Digit>
__device__ void sort_by(Sorting& shared, Pairs& pairs, Pairs& others, unsigned count, Digit digit_of) {
    if (threadIdx.x < DIGITS) shared.starts[threadIdx.x] = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += RANK_THREADS)
        atomicAdd(&shared.starts[digit_of(pairs.keys[i], pairs.numbers[i])], 1u);
    __syncthreads();
    unsigned equal = threadIdx.x < DIGITS ? shared.starts[threadIdx.x] : 0, total;
    if (__syncthreads_or(equal == count)) return;  // they are sorted
    unsigned start = sum_before(shared, equal, total);
    if (threadIdx.x < DIGITS) shared.starts[threadIdx.x] = start;
    for (unsigned first = 0; first < count; first += RANK_THREADS) {
        unsigned i = first + threadIdx.x, digit = DIGITS;
        Key key;
        Number number;
        if (i < count) key = pairs.keys[i], number = pairs.numbers[i], digit = digit_of(key, number);
        for (int j = threadIdx.x; j < RANK_THREADS / 32 * DIGITS; j += RANK_THREADS)
            shared.counts[j / DIGITS][j % DIGITS] = 0;
        __syncthreads();
        unsigned peers = __match_any_sync(ALL, digit);
        int before = __popc(peers & lower_lanes());
        if (i < count && before == 0) shared.counts[warp()][digit] = __popc(peers);
        __syncthreads();
        if (threadIdx.x < DIGITS) {
            unsigned place = shared.starts[threadIdx.x];
            for (int j = 0; j < RANK_THREADS / 32; ++j) {
                unsigned here = shared.counts[j][threadIdx.x];
                shared.counts[j][threadIdx.x] = place;
                place += here;
            }
            shared.starts[threadIdx.x] = place;
        }
        __syncthreads();
        if (i < count) {
            unsigned place = shared.counts[warp()][digit] + before;
            others.keys[place] = key, others.numbers[place] = number;
        }
        __syncthreads();
    }
    Pairs sorted = others;
    others = pairs, pairs = sorted;
}

// What the scan has found, to ranked[:n], the numbers of the best candidates of an image, best first, at most
// `capacity`. members[starts[s]:starts[s + 1]]: the ranks of those of class s, in order, or of all where there is one
// segment. An image has `scanned` of keys, numbers, other_keys and other_numbers, `parts` of found and offsets, each
// part being `part` long, `capacity` of ranked and members, and segments + 1 of starts.
struct MulticlassRank {
    Key* keys;
    Number* numbers;
    Key* other_keys;
    Number* other_numbers;
    const Number* found;
    Number* offsets;
    long long by_boxes, scanned, parts, part, length, classes, capacity, segments;
    Number* ranked;
    Number* members;
    Number* starts;
};

extern "C" __global__ void __launch_bounds__(RANK_THREADS) multiclass_rank(const MulticlassRank args) {
    SHARED(Sorting, shared);
    long long image = blockIdx.x, place = image * args.scanned, output = image * args.capacity;
    Pairs others = {args.keys + place, args.numbers + place},
          pairs = {args.other_keys + place, args.other_numbers + place};
    const Number* found = args.found + image * args.parts;
    Number* offsets = args.offsets + image * args.parts;
    Number classes = args.classes, length = args.length;

    unsigned count = 0;
    for (long long first = 0; first < args.parts; first += RANK_THREADS) {
        long long i = first + threadIdx.x;
        unsigned total, before = sum_before(shared, i < args.parts ? found[i] : 0, total);
        if (i < args.parts) offsets[i] = count + before;
        count += total;
        __syncthreads();
    }
    for (long long i = warp(); i < args.parts; i += RANK_THREADS / 32)
        for (unsigned j = lane(); j < found[i]; j += 32) {
            pairs.keys[offsets[i] + j] = others.keys[i * args.part + j];
            pairs.numbers[offsets[i] + j] = others.numbers[i * args.part + j];
        }

    for (int shift = 0; args.by_boxes && shift < 32 && (length - 1) >> shift; shift += 8)
        sort_by(shared, pairs, others, count, [=](Key, Number number) { return (number / classes >> shift) % DIGITS; });
    for (int shift = 0; shift < 8 * sizeof(Key); shift += 8)
        sort_by(shared, pairs, others, count, [=](Key key, Number) { return (unsigned)(key >> shift) % DIGITS; });

    // From here on the pairs are a class and a rank.
    count = min((long long)count, args.capacity);
    for (unsigned rank = threadIdx.x; rank < count; rank += RANK_THREADS) {
        Number number = pairs.numbers[rank];
        args.ranked[output + rank] = number;
        pairs.keys[rank] = args.segments == 1 ? 0 : number % classes;
        pairs.numbers[rank] = rank;
    }
    __syncthreads();
    for (int shift = 0; shift < 32 && (args.segments - 1) >> shift; shift += 8)
        sort_by(shared, pairs, others, count, [=](Key key, Number) { return (unsigned)(key >> shift) % DIGITS; });
    for (long long i = threadIdx.x; i <= count; i += RANK_THREADS) {
        if (i < count) args.members[output + i] = pairs.numbers[i];
        long long segment = i > 0 ? pairs.keys[i - 1] + 1 : 0, last = i < count ? pairs.keys[i] : args.segments;
        for (; segment <= last; ++segment) args.starts[image * (args.segments + 1) + segment] = i;
    }
}

// --------------------------------------------------------------------------------------------------------- suppress

struct Suppressing {
    Boxes<CHUNK> boxes;
    unsigned words[WORDS];
    Number labels[CHUNK];
};

// Flags the detections of each segment of each image, which has `capacity` of flags by rank, and counts those of each
// image. At most `of_class` of each class, which are counted in class_counts (N, C), null where a segment is a class,
// and at most `most` of a segment. members[starts[s]:] becomes the numbers of the boxes that are kept. boxes (N, L, 4),
// or (N, L, C, 4) if `of_classes`. flags, counts and class_counts start as 0.
struct MulticlassSuppress {
    const void* boxes;
    long long boxes_dtype, of_classes, length, classes;
    double iou_threshold;
    long long capacity, segments, most, of_class;
    const Number* ranked;
    Number* members;
    const Number* starts;
    unsigned char* flags;
    Word* counts;
    Word* class_counts;

    __device__ Box box(long long image, Number number) const {
        long long row = of_classes ? image * length * classes + number : image * length + number / (Number)classes;
        return box_of(boxes, row, boxes_dtype, 0);
    }
};

extern "C" __global__ void __launch_bounds__(CHUNK, 1) multiclass_suppress(const MulticlassSuppress args) {
    SHARED(Suppressing, shared);
    long long image = blockIdx.x / args.segments, segment = blockIdx.x % args.segments;
    const Number* starts = args.starts + image * (args.segments + 1) + segment;
    const Number* ranked = args.ranked + image * args.capacity;
    Number* members = args.members + image * args.capacity + starts[0];
    long long length = starts[1] - starts[0], kept = 0, accepted = 0;
    Real threshold = real(args.iou_threshold);
    for (long long first = 0; first < length && accepted < args.most; first += CHUNK) {
        long long position = first + threadIdx.x;
        bool alive = position < length;
        Number rank = members[min(position, length - 1)], number = ranked[rank];
        Box box = args.box(image, number);
        Real area = area_of(box);
        for (long long some = 0; some < kept; some += CHUNK) {
            int here = min(kept - some, (long long)CHUNK);
            __syncthreads();  // the boxes may still be read
            if (threadIdx.x < here) shared.boxes.put(threadIdx.x, args.box(image, members[some + threadIdx.x]));
            __syncthreads();
            for (int i = 0; alive && i < here; ++i) alive = !shared.boxes.suppresses(i, box, area, threshold);
        }
        if (!__syncthreads_or(alive)) continue;
        shared.boxes.put(threadIdx.x, box);
        __syncthreads();
        unsigned suppressors[WORDS], own = 0;
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
            unsigned bits = 0;
            for (int bit = 0; alive && word <= warp() && bit < 32 && 32 * word + bit < threadIdx.x; ++bit)
                if (shared.boxes.suppresses(32 * word + bit, box, area, threshold)) bits |= 1u << bit;
            suppressors[word] = bits;
            if (word == warp()) own = bits;
        }
        bool keep = settle_own(shared.words, suppressors, own, alive);
        int here, place = position_among(shared.words, keep, here);
        if (keep) members[kept + place] = number;
        kept += here;
        Number label = number % (Number)args.classes;
        Word* of_class = args.class_counts ? args.class_counts + image * args.classes + label : nullptr;
        if (args.class_counts) {
            shared.labels[threadIdx.x] = keep ? label : ~(Number)0;
            __syncthreads();
            Word before = keep ? *of_class : 0;
            for (int i = 0; keep && i < threadIdx.x; ++i) before += shared.labels[i] == label;
            keep = keep && before < args.of_class;
        } else {
            keep = keep && accepted + place < args.most;
        }
        if (keep) args.flags[image * args.capacity + rank] = 1;
        int more = __syncthreads_count(keep);
        if (args.class_counts && keep) atomicAdd(of_class, (Word)1);
        accepted += more;
    }
    if (threadIdx.x == 0 && accepted) atomicAdd(args.counts + image, (Word)accepted);
}

// ------------------------------------------------------------------------------------------------------------ write

using WriteWords = unsigned[2][WRITE_THREADS / 32];  // by turns, so that a barrier for each is enough

// The flagged candidates of each image by rank, at most `most`. Padded, where `images` is null: to boxes (N, most) and
// labels (N, most), then -1, and their number to found (N,). Else to images, boxes and labels, one image after the
// other.
struct MulticlassWrite {
    const Number* ranked;
    const unsigned char* flags;
    const Word* counts;
    long long capacity, classes, most;
    long long* images;
    long long* boxes;
    long long* labels;
    long long* found;
};

extern "C" __global__ void __launch_bounds__(WRITE_THREADS) multiclass_write(const MulticlassWrite args) {
    SHARED(WriteWords, words);
    SHARED(Word, earlier);
    long long image = blockIdx.x, most = args.most, count = min((long long)args.counts[image], most);
    if (threadIdx.x == 0) earlier = 0;
    __syncthreads();
    Word before = 0;
    for (long long i = threadIdx.x; args.images && i < image; i += WRITE_THREADS)
        before += min((long long)args.counts[i], most);
    if (before) atomicAdd(&earlier, before);
    __syncthreads();
    long long start = args.images ? earlier : image * most, done = 0;
    for (long long first = 0; done < count; first += WRITE_THREADS) {
        long long rank = first + threadIdx.x, place = image * args.capacity + rank;
        bool flag = rank < args.capacity && args.flags[place];
        int here, own = position_among(words[first / WRITE_THREADS % 2], flag, here);
        if (flag && done + own < count) {
            Number number = args.ranked[place], classes = args.classes;
            if (args.images) args.images[start + done + own] = image;
            args.boxes[start + done + own] = number / classes, args.labels[start + done + own] = number % classes;
        }
        done += here;
    }
    if (args.images) return;
    for (long long i = count + threadIdx.x; i < most; i += WRITE_THREADS)
        args.boxes[start + i] = args.labels[start + i] = -1;
    if (threadIdx.x == 0) args.found[image] = count;
}
