// What the library does besides the operators: makes the pool of threads when it is loaded, and
// takes their number.

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

}  // extern "C"
