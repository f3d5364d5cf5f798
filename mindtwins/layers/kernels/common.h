// What all kernels share: threads, vectors, memory, and how MindSpore calls them.
//
// Every entry point has the signature of MindSpore's ahead-of-time custom operators: pointers,
// ranks and shapes of the inputs followed by those of the outputs; 0 means success.
//
// Sums that run over tokens (gradients of weights) are made per chunk of fixed size and added in
// the order of the chunks, so results do not depend on the number of threads or their timing.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <pthread.h>
#include <thread>
#include <utility>
#include <vector>

namespace mindtwins {

// ---------------------------------------------------------------------------------------- threads

// Worker threads that sleep between calls, after a moment: within a model the next call comes sooner
// than a thread wakes up. OpenMP's spin for long, and on few cores take the time from MindSpore's own
// threads: the whole model becomes twice as slow.
class Pool {
 public:
  // Calls body(begin, end) for all chunks of [0, count); the calling thread takes part.
  template <class Body>
  void run(int64_t count, int64_t chunk, int threads, const Body& body) {
    const int64_t chunks = (count + chunk - 1) / chunk;
    std::atomic<int64_t> next{0};
    const std::function<void()> work = [&] {
      for (int64_t c; (c = next.fetch_add(1)) < chunks;)
        body(c * chunk, std::min(count, (c + 1) * chunk));
    };
    const int helpers = int(std::min<int64_t>(threads, chunks)) - 1;
    // One call at a time may have the workers; one that comes meanwhile works alone.
    std::unique_lock<std::mutex> owner(in_use_, std::try_to_lock);
    if (helpers < 1 || !owner.owns_lock()) return work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < helpers; workers_++) std::thread([this] { sleep_and_work(); }).detach();
      work_ = &work;
      wanted_ = helpers;
    }
    wake_.notify_all();
    work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      wanted_ = 0;  // whoever has not begun by now is not needed any more
    }
    for_a_moment([&] { return working_ == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [&] { return working_ == 0; });
  }

 private:
  void sleep_and_work() {
    for (;;) {
      for_a_moment([&] { return wanted_ > 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return wanted_ > 0; });
      wanted_--;
      working_++;
      const std::function<void()>* work = work_;
      lock.unlock();
      (*work)();
      lock.lock();
      if (--working_ == 0) finished_.notify_one();
    }
  }

  // Two tenths of a millisecond at most: to wake a thread takes a quarter of that, and MindSpore comes
  // back within it between most operators. Longer would take cores from other processes.
  template <class Condition>
  static void for_a_moment(const Condition& is_met) {
    for (int i = 0; i < 4000 && !is_met(); i++) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  }

  std::mutex in_use_, mutex_;
  std::condition_variable wake_, finished_;
  const std::function<void()>* work_ = nullptr;
  int workers_ = 0;
  std::atomic<int> wanted_{0}, working_{0};
};

inline std::atomic<int> thread_count{1};

// Made when the library is loaded (library.cpp) and never destroyed: its threads may outlive the
// static objects. A forked child has none of the threads, and starts with a pool of its own.
inline Pool* pool = nullptr;

template <class Body>
void parallel(int64_t count, int64_t chunk, const Body& body) {
  pool->run(count, chunk, thread_count, body);
}

// ---------------------------------------------------------------------------------------- vectors

#if defined(__AVX512F__)
constexpr int V = 16;
#else
constexpr int V = 8;
#endif
typedef float Vec __attribute__((vector_size(4 * V)));
typedef int32_t IntVec __attribute__((vector_size(4 * V)));
typedef float Unaligned __attribute__((vector_size(4 * V), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = v; }
inline Vec broadcast(float value) { return value - Vec{}; }  // 0 + value would be an addition

// The first `n` lanes only, 0 < n; a whole vector where there are that many.
inline Vec load(const float* p, int64_t n) {
  if (n >= V) return load(p);
  Vec v{};
  std::memcpy(&v, p, n * sizeof(float));
  return v;
}
inline void store(float* p, Vec v, int64_t n) {
  if (n >= V) return store(p, v);
  std::memcpy(p, &v, n * sizeof(float));
}

inline float sum(Vec v) {
  float lanes[V];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = V / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float maximum(Vec v) {
  float lanes[V];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = V / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] = std::max(lanes[i], lanes[i + half]);
  return lanes[0];
}

// `a` where `a` is NaN. By their instructions, which the compiler does not see in `b < a ? b : a`.
inline Vec minimum(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_ia32_minps512_mask(b, a, a, -1, 4);
#elif defined(__AVX__)
  return __builtin_ia32_minps256(b, a);
#else
  return b < a ? b : a;
#endif
}
inline Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_ia32_maxps512_mask(b, a, a, -1, 4);
#elif defined(__AVX__)
  return __builtin_ia32_maxps256(b, a);
#else
  return b > a ? b : a;
#endif
}

// 1 / x to 1e-7 relative, of normal numbers: to divide would take as long as 16 multiply-adds.
inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  const Vec guess = __builtin_ia32_rcp14ps512_mask(x, Vec{}, -1);
#elif defined(__AVX__)
  const Vec guess = __builtin_ia32_rcpps256(x);
#else
  return 1.f / x;
#endif
#if defined(__AVX__)
  const Vec error = 1.f - x * guess;
  return guess + guess * (error + error * error);
#endif
}

// e^x to 1e-7 relative, x clamped to where the result is a normal number. NaN gives NaN.
inline Vec exponential(Vec x) {
  x = minimum(maximum(x, broadcast(-87.3f)), broadcast(88.3f));
  const Vec magic = broadcast(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const IntVec power = (reinterpret_cast<IntVec>(shifted) + 127) << 23;
  return p * reinterpret_cast<Vec>(power);
}

// ------------------------------------------------------------------------------ shapes and memory

// Scratch memory, zeros at first, aligned so that vectors do not straddle cache lines.
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : count_(count), data_(new (std::align_val_t(64)) float[count]()) {}
  Buffer(Buffer&& other) : count_(other.count_), data_(other.data_) { other.data_ = nullptr; }
  ~Buffer() {
    if (data_) operator delete[](data_, std::align_val_t(64));
  }
  float* data() { return data_; }
  const float* data() const { return data_; }
  float* begin() { return data_; }
  float* end() { return data_ + count_; }
  int64_t size() const { return count_; }
  float& operator[](int64_t i) { return data_[i]; }
  const float& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t count_;
  float* data_;
};

// Memory for a moment, whose numbers are any at first. A thread keeps what it was given and takes it
// again: fresh memory costs a page fault for every 4 KB.
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    thread_local std::vector<std::unique_ptr<Block>> blocks;
    for (auto& block : blocks)
      if (!block->in_use && (!block_ || block->size > block_->size)) block_ = block.get();
    if (!block_) block_ = blocks.emplace_back(new Block).get();
    if (block_->size < count) block_->resize(count);
    block_->in_use = true;
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    if (block_->size > KEPT) block_->resize(0);
    block_->in_use = false;
  }
  float* data() { return block_->data; }
  const float* data() const { return block_->data; }

 private:
  static constexpr int64_t KEPT = 1 << 22;  // numbers; more goes back at once
  struct Block {
    ~Block() { resize(0); }
    void resize(int64_t count) {
      if (data) operator delete[](data, std::align_val_t(64));
      data = nullptr;
      size = 0;
      if (count) data = new (std::align_val_t(64)) float[count];
      size = count;
    }
    float* data = nullptr;
    int64_t size = 0;
    bool in_use = false;
  };
  Block* block_ = nullptr;
};

inline int64_t product(const int64_t* shape, int count) {
  int64_t total = 1;
  for (int i = 0; i < count; i++) total *= shape[i];
  return total;
}

// Adds the chunks' partial sums (chunks, width), in their order.
inline void add_partials(const Buffer& partials, int64_t width, int64_t begin, int64_t count,
                         float* total) {
  std::fill(total, total + count, 0.f);
  for (int64_t at = begin; at < partials.size(); at += width)
    for (int64_t i = 0; i < count; i++) total[i] += partials[at + i];
}

inline int64_t round_up(int64_t n) { return (n + V - 1) / V * V; }

constexpr int64_t ELEMENTS = 16384;  // per chunk of an elementwise operation

constexpr int64_t ROWS = 256;  // per chunk of an operation on rows of channels

// Sums over the rows of x (rows, channels): add(row, c, totals), where `totals` are COUNT vectors
// for the channels from c on. Writes sum i to out[i].
template <int COUNT, class Add>
void sum_rows(int64_t rows, int64_t channels, const Add& add, float* const (&out)[COUNT]) {
  const int64_t padded = round_up(channels);
  Buffer partials((rows + ROWS - 1) / ROWS * COUNT * padded);
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    float* partial = &partials[begin / ROWS * COUNT * padded];
    for (int64_t row = begin; row < end; row++)
      for (int64_t c = 0; c < channels; c += V) {
        Vec terms[COUNT];
        add(row, c, terms);
        for (int i = 0; i < COUNT; i++) {
          float* total = partial + i * padded + c;
          store(total, load(total) + terms[i]);
        }
      }
  });
  for (int i = 0; i < COUNT; i++)
    add_partials(partials, COUNT * padded, i * padded, channels, out[i]);
}

// Whether the inputs and outputs of an operator have the types that it works with, a letter each:
// f float32, i int32.
inline bool has_types(const char* expected, int count, const char* const* types) {
  for (int i = 0; i < count; i++)
    if (std::strcmp(types[i], expected[i] == 'f' ? "float32" : "int32")) return false;
  return true;
}

}  // namespace mindtwins

// Begins an entry point that refuses inputs and outputs of other types; see `has_types`.
#define OPERATOR(name, types)                                                            \
  static int name##_of_types(void** params, int* ranks, int64_t** shapes);               \
  extern "C" int name(int count, void** params, int* ranks, int64_t** shapes,            \
                      const char** given, void*, void*) {                                \
    return has_types(types, count, given) ? name##_of_types(params, ranks, shapes) : 1;  \
  }                                                                                      \
  static int name##_of_types(void** params, [[maybe_unused]] int* ranks, int64_t** shapes)

#define INPUT(i) static_cast<const float*>(params[i])
#define OUTPUT(i) static_cast<float*>(params[i])
