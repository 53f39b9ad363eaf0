// Counts what a process calls, for bench/operation_costs.py: loaded with LD_PRELOAD, it writes its counters to COUNT_CALLS_FOLDER/<pid>,
// from where they can be read while the process runs. Only calls through the C library's symbols are seen, which is all of ours: the
// compiler inlines neither malloc nor the locks.
//
// Layout of the file: 64-bit counters in the order of `Counter`. Cost: one relaxed addition a call. Threads: any.
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
}

namespace {

enum Counter : std::size_t { kAllocations, kLocks, kSends, kReceives, kWaits, kCounters };
using Counters = std::array<std::atomic<std::uint64_t>, kCounters>;

Counters before_the_file;
std::atomic<Counters*> counters{&before_the_file};

void count(Counter counter) { (*counters.load(std::memory_order_relaxed))[counter].fetch_add(1, std::memory_order_relaxed); }

// Also in a forked child, whose counters would otherwise be its parent's.
void open_file() {
  const char* folder = std::getenv("COUNT_CALLS_FOLDER");
  if (folder == nullptr) return;
  std::array<char, 512> path{};
  std::snprintf(path.data(), path.size(), "%s/%d", folder, static_cast<int>(::getpid()));
  const int fd = ::open(path.data(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0 || ::ftruncate(fd, sizeof(Counters)) != 0) return;
  void* memory = ::mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  if (memory != MAP_FAILED) counters.store(static_cast<Counters*>(memory), std::memory_order_relaxed);
}

[[gnu::constructor]] void start() {
  open_file();
  ::pthread_atfork(nullptr, nullptr, open_file);
}

// The next definition of `name`: the C library's own.
template <typename Function>
Function next(const char* name, std::atomic<void*>& known) {
  void* found = known.load(std::memory_order_relaxed);
  if (found == nullptr) {
    found = ::dlsym(RTLD_NEXT, name);
    known.store(found, std::memory_order_relaxed);
  }
  return reinterpret_cast<Function>(found);
}

}  // namespace

#define COUNTED(counter, result, name, parameters, arguments)                \
  extern "C" __attribute__((visibility("default"))) result name parameters { \
    static std::atomic<void*> known{nullptr};                                \
    count(counter);                                                          \
    return next<result(*) parameters>(#name, known) arguments;               \
  }

extern "C" {
__attribute__((visibility("default"))) void* malloc(std::size_t size) {
  count(kAllocations);
  return __libc_malloc(size);
}
__attribute__((visibility("default"))) void* calloc(std::size_t number, std::size_t size) {
  count(kAllocations);
  return __libc_calloc(number, size);
}
__attribute__((visibility("default"))) void* realloc(void* memory, std::size_t size) {
  count(kAllocations);
  return __libc_realloc(memory, size);
}
__attribute__((visibility("default"))) void* aligned_alloc(std::size_t alignment, std::size_t size) {
  count(kAllocations);
  return __libc_memalign(alignment, size);
}
}

COUNTED(kLocks, int, pthread_mutex_lock, (pthread_mutex_t * mutex), (mutex))
COUNTED(kLocks, int, pthread_mutex_trylock, (pthread_mutex_t * mutex), (mutex))
COUNTED(kLocks, int, pthread_rwlock_rdlock, (pthread_rwlock_t * lock), (lock))
COUNTED(kLocks, int, pthread_rwlock_wrlock, (pthread_rwlock_t * lock), (lock))
COUNTED(kSends, ssize_t, send, (int fd, const void* data, std::size_t size, int flags), (fd, data, size, flags))
COUNTED(kSends, ssize_t, sendmsg, (int fd, const msghdr* message, int flags), (fd, message, flags))
COUNTED(kReceives, ssize_t, recv, (int fd, void* data, std::size_t size, int flags), (fd, data, size, flags))
COUNTED(kReceives, ssize_t, recvmsg, (int fd, msghdr* message, int flags), (fd, message, flags))
COUNTED(kWaits, int, poll, (pollfd * fds, nfds_t number, int timeout), (fds, number, timeout))
COUNTED(kWaits, int, epoll_wait, (int fd, epoll_event* events, int most, int timeout), (fd, events, most, timeout))
