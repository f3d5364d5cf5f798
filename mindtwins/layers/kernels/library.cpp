// What the library does besides the operators: makes the pool of threads when it is loaded, takes
// their number, and says whether this processor can run it.

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

// Whether this processor has the instructions that the library was compiled for.
int mindtwins_supported() {
#if defined(__x86_64__)
#ifdef __AVX2__
  if (!__builtin_cpu_supports("avx2")) return 0;
#endif
#ifdef __FMA__
  if (!__builtin_cpu_supports("fma")) return 0;
#endif
#ifdef __AVX512F__
  if (!__builtin_cpu_supports("avx512f")) return 0;
#endif
#endif
  return 1;
}

}  // extern "C"
