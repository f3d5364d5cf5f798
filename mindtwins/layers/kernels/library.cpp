// What the library does besides the operators: makes the pool of threads when it is loaded, takes
// their number, and knows the most that a core can do.

#include <pthread.h>

#include "common.h"

using namespace mindtwins;

namespace {

__attribute__((constructor)) void create_pool() {
  pool = new Pool;
  pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
}

}  // namespace

extern "C" {

// How many threads the kernels may use, the calling one included.
void mindtwins_set_threads(int count) { thread_count = std::max(1, count); }

// As many multiply-adds of vectors as told, in registers alone; how many numbers each has had. Their
// time is what no product can be faster than.
int64_t mindtwins_multiply_adds(int64_t count) {
  constexpr int CHAINS = V == 16 ? 24 : 12;
  Vec totals[CHAINS];
#pragma GCC unroll 24
  for (int chain = 0; chain < CHAINS; chain++) totals[chain] = broadcast(count + chain);
  const Vec factor = broadcast(0.5f), term = broadcast(1.f);
  for (int64_t i = 0; i < count; i += CHAINS) {
#pragma GCC unroll 24
    for (Vec& total : totals) total = total * factor + term;
  }
  Vec all{};
  for (const Vec& total : totals) all += total;
  return sum(all) > 0 ? V : 0;
}

}  // extern "C"
