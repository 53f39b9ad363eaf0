// The store's paths side by side: master, storage node and users in processes of their own, the same objects put and got over shared memory
// and over tcp, looked at through views, and copied by memcpy, interleaved in one run. Prints medians and their ratio to memcpy.
//
//   pool_paths [rounds, default 15]
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "base/logging.h"
#include "child_process.h"
#include "master/master.h"
#include "store/client.h"

namespace {

using namespace moonpool;
using Clock = std::chrono::steady_clock;
using store::ConstBytes;
using store::MutableBytes;

constexpr std::uint64_t kSegment = std::uint64_t{3} << 30;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "pool_paths: %s\n", what.c_str());
  std::exit(1);
}

// ---------------------------------------------------------------- the other processes

void run_master(int, int out) {
  master::MasterConfig config;
  config.port = 0;
  config.metrics_port = 0;
  config.metric_reporting = false;
  config.recovery_window = std::chrono::milliseconds(100);
  const auto master = master::Master::start(config);
  if (!master.ok()) die(master.status().to_string());
  bench::tell(out, (*master)->port());
  for (;;) ::pause();
}

std::unique_ptr<store::Client> user(std::uint16_t master, std::uint64_t segment, const char* paths) {
  store::ClientOptions options;
  options.local_hostname = "127.0.0.1";
  options.master_address = "127.0.0.1:" + std::to_string(master);
  options.segment_size = segment;
  options.local_buffer_size = 1 << 20;
  options.paths = paths;
  auto made = store::Client::create(options);
  if (!made.ok()) die(made.status().to_string());
  return std::move(made).value();
}

// ---------------------------------------------------------------- shapes

struct Shape {
  const char* name;
  std::size_t objects;
  std::size_t pieces;
  std::size_t piece;
  [[nodiscard]] std::size_t bytes() const { return objects * pieces * piece; }
};

// Page-aligned, as engines' memory is.
template <typename T>
struct PageAllocator {
  using value_type = T;
  static T* allocate(std::size_t count) { return static_cast<T*>(::operator new (count * sizeof(T), std::align_val_t{4096})); }
  static void deallocate(T* memory, std::size_t) { ::operator delete (memory, std::align_val_t{4096}); }
  bool operator==(const PageAllocator&) const = default;
};
using Memory = std::vector<std::byte, PageAllocator<std::byte>>;

// One shape's memory: sources and destinations of a batch.
struct Batch {
  explicit Batch(const Shape& its) : shape(its), from(its.bytes(), std::byte{1}), to(its.bytes(), std::byte{2}) {
    for (std::size_t at = 0; at < from.size(); at += shape.piece) {
      sources.push_back(ConstBytes(from).subspan(at, shape.piece));
      targets.push_back(MutableBytes(to).subspan(at, shape.piece));
    }
    for (std::size_t i = 0; i < shape.objects; ++i) {
      source_lists.push_back(std::span<const ConstBytes>(sources).subspan(i * shape.pieces, shape.pieces));
      target_lists.push_back(std::span<const MutableBytes>(targets).subspan(i * shape.pieces, shape.pieces));
    }
  }
  void name_keys(const std::string& prefix) {
    names.clear();
    keys.clear();
    for (std::size_t i = 0; i < shape.objects; ++i)
      names.push_back(prefix + "/model@rank0@0123456789abcdef0123456789abcdef/" + std::to_string(i));
    for (const auto& name : names) keys.push_back(name);
  }

  const Shape shape;
  Memory from, to;
  std::vector<ConstBytes> sources;
  std::vector<MutableBytes> targets;
  std::vector<std::span<const ConstBytes>> source_lists;
  std::vector<std::span<const MutableBytes>> target_lists;
  std::vector<std::string> names;
  std::vector<std::string_view> keys;
};

double seconds(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void measure(const Shape& shape, int rounds, std::map<std::string, std::unique_ptr<store::Client>>& users) {
  Batch batch(shape);
  std::map<std::string, std::vector<double>> times;
  const int repeats = static_cast<int>(std::max<std::size_t>(1, (std::size_t{4} << 20) / shape.bytes()));
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < batch.from.size(); i += 64) batch.from[i] = static_cast<std::byte>(round + static_cast<int>(i >> 12));
    times["memcpy"].push_back(seconds([&] {
                                for (int r = 0; r < repeats; ++r) {
                                  for (std::size_t i = 0; i < batch.sources.size(); ++i) {
                                    std::memcpy(batch.targets[i].data(), batch.sources[i].data(), batch.sources[i].size());
                                  }
                                }
                              }) /
                              repeats);
    for (auto& [path, client] : users) {
      double put = 0;
      double get = 0;
      double view = 0;
      for (int r = 0; r < repeats; ++r) {
        batch.name_keys(std::string(shape.name) + path + std::to_string(round) + "." + std::to_string(r));
        std::vector<std::int32_t> written;
        std::vector<std::int64_t> read;
        put += seconds([&] { written = client->put(batch.keys, batch.source_lists); });
        std::ranges::fill(batch.to, std::byte{0});
        get += seconds([&] { read = client->get_into(batch.keys, batch.target_lists, true); });
        if (std::ranges::count(written, 0) != static_cast<std::ptrdiff_t>(shape.objects)) die(path + ": a put failed");
        if (batch.to != batch.from || read.size() != shape.objects) die(path + ": a get failed");
        std::vector<Result<store::View>> views;
        view += seconds([&] { views = client->view(batch.keys); });
        for (const auto& one : views) {
          if (!one.ok()) die(path + ": a view failed");
        }
        views.clear();
        client->remove(batch.keys, true);
      }
      times[path + " put"].push_back(put / repeats);
      times[path + " get"].push_back(get / repeats);
      times[path + " view"].push_back(view / repeats);
    }
  }
  std::printf("\n%s: %zu objects of %zu x %zu bytes\n", shape.name, shape.objects, shape.pieces, shape.piece);
  const double base = median(times["memcpy"]);
  for (const auto& [name, list] : times) {
    const double time = median(list);
    std::printf("  %-12s %9.1f us  %7.2f GB/s  %9.0f objects/s  %5.2f of memcpy\n", name.c_str(), time * 1e6,
                static_cast<double>(shape.bytes()) / time / 1e9, static_cast<double>(shape.objects) / time, base / time);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 15;
  const bench::ChildProcess master_process(run_master);
  const auto master = master_process.read_value<std::uint16_t>();
  const bench::ChildProcess node_process([master](int, int out) {
    const auto node = user(master, kSegment, "");
    std::this_thread::sleep_for(std::chrono::seconds(3));  // its first 512 MiB are touched by then
    bench::tell(out, 'r');
    for (;;) ::pause();
  });
  static_cast<void>(node_process.read_value<char>());
  std::map<std::string, std::unique_ptr<store::Client>> users;
  users["shm"] = user(master, 0, "");
  users["tcp"] = user(master, 0, "tcp");
  for (const Shape& shape : {Shape{"4 KiB", 32, 1, 4096}, Shape{"64 KiB", 32, 1, 65536}, Shape{"1 MiB", 16, 1, 1 << 20},
                             Shape{"16 MiB", 2, 1, 16 << 20}, Shape{"vLLM", 24, 30, 96 << 10}}) {
    measure(shape, rounds, users);
  }
  users.clear();
  return 0;
}
