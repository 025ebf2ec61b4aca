// Runs CUDA kernels on the CPU, for tests: C++17, Linux.
//
// Every CUDA thread is a fiber that runs until it must wait for others: at a barrier, at a warp exchange, in PAUSE().
// Who runs next is drawn from a seeded generator, a few threads are held back for long, and few blocks are resident at
// once, as on a small GPU: a kernel that relies on an order that CUDA does not promise fails under some seed. Shared
// memory starts as 0xFF bytes, which are NaN and -1. A barrier that some threads never reach, and waiting without end,
// are errors. Not shown: memory that a GPU makes visible late (__threadfence does nothing here).
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
struct uint3 {
    unsigned x, y, z;
};

namespace emulation {

struct Block;
struct Thread;

struct Fiber {
    jmp_buf state;
    char* stack;
    Thread* thread;
};

struct Thread {
    Block* block;
    uint3 index;
    Fiber* fiber = nullptr;
};

// Threads that wait for each other, and what they tell each other.
struct Meeting {
    std::vector<Thread*> waiting;
    uint64_t values[32] = {}, published[32] = {};
    int count = 0, result = 0;
};

struct Block {
    uint3 index;
    int unfinished;
    Meeting barrier;
    std::map<std::pair<unsigned, unsigned>, Meeting> warps;  // by warp and mask
    std::vector<unsigned> exited;                            // lanes, by warp
    std::map<int, std::unique_ptr<char[]>> shared;           // by declaration
    std::vector<Thread> threads;
};

constexpr size_t STACK = 64 * 1024;
constexpr long PATIENCE = 20'000'000;  // switches without a barrier passed or a thread finished

inline Thread* current;
inline uint3 block_size, grid_size;
inline jmp_buf scheduler;
inline std::mt19937 draw;
inline std::vector<Thread*> ready, held_back;
inline std::vector<Fiber*> idle;
inline std::function<void()>* body;
inline std::string error;
inline long idle_switches;
inline bool block_finished;

[[noreturn]] inline void fail(const char* text) {
    error = std::string(text) + " (block " + std::to_string(current->block->index.x) + ", thread " +
            std::to_string(current->index.x) + ")";
    _longjmp(scheduler, 1);
}

// Leave the current fiber; it goes on when the scheduler takes its thread from `ready`.
inline void leave() {
    if (!_setjmp(current->fiber->state)) _longjmp(scheduler, 1);
}

inline void pause() {
    ready.push_back(current);
    leave();
}

inline void wake(Meeting& meeting) {
    for (Thread* thread : meeting.waiting) (draw() % 16 ? ready : held_back).push_back(thread);
    meeting.waiting.clear();
}

inline Thread* take(std::vector<Thread*>& threads) {
    std::swap(threads[draw() % threads.size()], threads.back());
    Thread* thread = threads.back();
    threads.pop_back();
    return thread;
}

inline void open_if_complete(Block& block) {
    if ((int)block.barrier.waiting.size() < block.unfinished) return;
    block.barrier.result = std::exchange(block.barrier.count, 0);
    idle_switches = 0;
    wake(block.barrier);
}

inline int barrier(bool vote) {
    Block& block = *current->block;
    block.barrier.count += vote;
    block.barrier.waiting.push_back(current);
    open_if_complete(block);
    leave();
    return block.barrier.result;
}

// Exchange among the lanes of `mask`; returns what each of the 32 lanes brought.
inline const uint64_t* exchange(unsigned mask, uint64_t value) {
    Block& block = *current->block;
    unsigned warp = current->index.x / 32, lane = current->index.x % 32;
    if (!(mask >> lane & 1)) fail("a lane calls a warp exchange whose mask does not name it");
    if (mask & block.exited[warp]) fail("a warp exchange names a lane that has exited");
    Meeting& meeting = block.warps[{warp, mask}];
    meeting.values[lane] = value;
    meeting.waiting.push_back(current);
    if ((int)meeting.waiting.size() == __builtin_popcount(mask)) {
        std::memcpy(meeting.published, meeting.values, sizeof meeting.values);
        wake(meeting);
    }
    leave();
    return meeting.published;
}

template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) >= sizeof(From));
    To result{};
    std::memcpy(&result, &value, sizeof value);
    return result;
}

template <class Type>
Type& shared(int declaration) {
    std::unique_ptr<char[]>& memory = current->block->shared[declaration];
    if (!memory) {
        memory.reset(new (std::align_val_t(16)) char[sizeof(Type)]);
        std::memset(memory.get(), 0xFF, sizeof(Type));
    }
    return *reinterpret_cast<Type*>(memory.get());
}

// When all others wait, those held back go on, of one block before all others: threads of the others then stay behind
// while it passes barrier after barrier.
inline void release() {
    static const Block* favoured;
    if (draw() % 512 == 0) favoured = held_back[draw() % held_back.size()]->block;
    auto next = std::find_if(held_back.begin(), held_back.end(), [](Thread* t) { return t->block == favoured; });
    if (next == held_back.end()) next = held_back.begin();
    ready.push_back(*next);
    held_back.erase(next);
}

// What each fiber does for ever: run the kernel for the thread that it is given.
inline void work() {
    for (;;) {
        (*body)();
        Block& block = *current->block;
        block.exited[current->index.x / 32] |= 1u << current->index.x % 32;
        block_finished = --block.unfinished == 0;
        idle_switches = 0;
        if (!block.barrier.waiting.empty()) open_if_complete(block);
        idle.push_back(std::exchange(current->fiber, nullptr));
        if (!_setjmp(idle.back()->state)) _longjmp(scheduler, 1);
    }
}

inline void resume(Thread* thread) {
    current = thread;
    if (_setjmp(scheduler)) return;
    if (thread->fiber) _longjmp(thread->fiber->state, 1);
    if (!idle.empty()) {
        thread->fiber = idle.back();
        idle.pop_back();
        _longjmp(thread->fiber->state, 1);
    }
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    thread->fiber = new Fiber{{}, (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, flags, -1, 0), nullptr};
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = thread->fiber->stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, work, 0);
    setcontext(&context);
}

inline void schedule(unsigned seed) {
    draw.seed(seed);
    size_t room = 1 + seed % 4;  // blocks resident at once
    unsigned admitted = 0;
    std::vector<std::unique_ptr<Block>> resident;
    ready.clear();
    held_back.clear();
    block_finished = false;
    error.clear();
    idle_switches = 0;
    for (;;) {
        auto finished = [](const std::unique_ptr<Block>& block) { return block->unfinished == 0; };
        if (std::exchange(block_finished, false))
            resident.erase(std::remove_if(resident.begin(), resident.end(), finished), resident.end());
        while (resident.size() < room && admitted < grid_size.x) {
            resident.emplace_back(new Block);
            Block& block = *resident.back();
            block.index = {admitted++, 0, 0};
            block.unfinished = block_size.x;
            block.exited.assign((block_size.x + 31) / 32, 0);
            block.threads.resize(block_size.x);
            for (unsigned i = 0; i < block_size.x; ++i) {
                block.threads[i].block = &block;
                block.threads[i].index = {i, 0, 0};
                ready.push_back(&block.threads[i]);
            }
        }
        if (ready.empty() && held_back.empty()) {
            if (!resident.empty()) error = "deadlock: threads wait at a barrier that others never reach";
            return;
        }
        if (ready.empty())
            release();
        else if (!held_back.empty() && draw() % 8192 == 0)
            ready.push_back(take(held_back));
        resume(take(ready));
        if (error.empty() && ++idle_switches > PATIENCE) error = "no progress: threads wait for what never happens";
        if (!error.empty()) return;
    }
}

// A field of a struct that a kernel takes: p for pointers, l for long long, d for double, s for another struct.
struct Field {
    const char* name;
    size_t offset, size;
    char kind;
};

template <class Type>
constexpr char kind_of() {
    using Single = std::remove_all_extents_t<Type>;
    static_assert(std::is_pointer_v<Single> || std::is_same_v<Single, long long> || std::is_same_v<Single, double> ||
                      std::is_class_v<Single>,
                  "kernels take pointers, long long, double, and structs of these");
    return std::is_pointer_v<Single> ? 'p' : std::is_same_v<Single, double> ? 'd' : std::is_class_v<Single> ? 's' : 'l';
}

template <class Arguments>
const char* run(void (*kernel)(Arguments), const void* bytes, size_t size, unsigned blocks, unsigned threads,
                unsigned seed) {
    static_assert(std::is_trivially_copyable_v<Arguments>);
    if (size != sizeof(Arguments)) return "the launcher's record has another size than the struct";
    Arguments arguments;
    std::memcpy(&arguments, bytes, size);
    std::function<void()> call = [&] { kernel(arguments); };
    body = &call;
    block_size = {threads, 1, 1};
    grid_size = {blocks, 1, 1};
    schedule(seed);
    return error.c_str();
}

}  // namespace emulation

// Makes a kernel callable: returns what went wrong, or an empty text.
#define KERNEL(name)                                                                                     \
    extern "C" const char* run_##name(const void* bytes, size_t size, unsigned blocks, unsigned threads, \
                                      unsigned seed) {                                                   \
        return emulation::run(name, bytes, size, blocks, threads, seed);                                 \
    }

// Tells of the fields that FIELD lists how a struct lays them out; the last entry is of the whole struct.
#define FIELD(Struct, name) \
    {#name, offsetof(Struct, name), sizeof(Struct::name), emulation::kind_of<decltype(Struct::name)>()}
#define LAYOUT(Struct, ...) \
    extern "C" const emulation::Field layout_##Struct[] = {__VA_ARGS__, {"", 0, sizeof(Struct), 's'}};

#define SHARED(TYPE, name) TYPE& name = emulation::shared<TYPE>(__COUNTER__)
#define PAUSE() emulation::pause()
#define threadIdx (emulation::current->index)
#define blockIdx (emulation::current->block->index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

inline void __syncthreads() { emulation::barrier(false); }
inline int __syncthreads_count(int vote) { return emulation::barrier(vote); }
inline unsigned __ballot_sync(unsigned mask, int vote) {
    const uint64_t* votes = emulation::exchange(mask, vote != 0);
    unsigned result = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) result |= (unsigned)votes[lane] << lane;
    return result;
}
// What each lane of `mask` reads from another one; a lane outside the 32 is the lane itself.
template <class Type>
Type exchange_with(unsigned mask, Type value, int source) {
    uint64_t bits = emulation::bits<uint64_t>(value);
    const uint64_t* values = emulation::exchange(mask, bits);
    int own = emulation::current->index.x % 32;
    if (source < 0 || source > 31) source = own;
    if (!(mask >> source & 1)) emulation::fail("a lane reads from a lane that the mask does not name");
    Type result;
    std::memcpy(&result, &values[source], sizeof result);
    return result;
}
template <class Type>
Type __shfl_sync(unsigned mask, Type value, int source) {
    return exchange_with(mask, value, source % 32);
}
template <class Type>
Type __shfl_xor_sync(unsigned mask, Type value, int bits) {
    return exchange_with(mask, value, int(emulation::current->index.x % 32) ^ bits);
}
template <class Type>
Type __shfl_down_sync(unsigned mask, Type value, int distance) {
    return exchange_with(mask, value, int(emulation::current->index.x % 32) + distance);
}
template <class Type>
Type __shfl_up_sync(unsigned mask, Type value, int distance) {
    return exchange_with(mask, value, int(emulation::current->index.x % 32) - distance);
}
// The lanes of `mask` that bring the same value.
template <class Type>
unsigned __match_any_sync(unsigned mask, Type value) {
    uint64_t bits = emulation::bits<uint64_t>(value);
    const uint64_t* values = emulation::exchange(mask, bits);
    unsigned result = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) result |= unsigned(values[lane] == bits) << lane;
    return result;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFF) { emulation::exchange(mask, 0); }
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == mask; }
inline int __syncthreads_or(int vote) { return emulation::barrier(vote != 0) != 0; }
inline void __threadfence() {}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }
template <class Type>
Type atomicAdd(Type* address, Type value) {
    return std::exchange(*address, *address + value);
}
template <class Type>
Type atomicMax(Type* address, Type value) {
    return std::exchange(*address, std::max(*address, value));
}
template <class Type>
Type atomicOr(Type* address, Type value) {
    return std::exchange(*address, *address | value);
}
template <class Type>
Type atomicExch(Type* address, Type value) {
    return std::exchange(*address, value);
}
template <class Type>
Type atomicCAS(Type* address, Type expected, Type value) {
    return std::exchange(*address, *address == expected ? value : *address);
}
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
using std::max;
using std::min;
