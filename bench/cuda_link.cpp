// What moves device memory by itself, without a store around it: the Copier's rate for pieces of several sizes by the number of
// multiprocessors, with and without checksums, beside one driver copy of the same bytes; both directions at once; where the time of one 2
// MiB block goes; what the host pays for a piece.
//
// The host's memory is a shared mapping that HostRegions pins, as a segment of the pool is, and for comparison of other kinds. Times are
// wall-clock times of submit() and wait(); each figure is the median of its calls, after one that is not counted. What a gather brings back
// of what a scatter took is compared, once for each size of pieces.
//   cuda_link [--device 0] [--quick] [--fake]
// prints a JSON line for each figure, as bench_cuda_worker.py does: path, shape, operation (put is a gather), side, unit, record. --fake
// takes tiny sizes on the tests' driver, to see that the program works. A whole run is under 25 s on an H200.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/cuda/copier/copier.h"
#include "transfer/cuda/driver/driver.h"
#include "transfer/cuda/driver/loaded_driver.h"
#include "transfer/cuda/host_regions.h"
#include "transfer/shm/shared_memory.h"
#ifdef MOONPOOL_FAKE_CUDA
#include "transfer/cuda/fake/fake_driver.h"
#endif

namespace {

using namespace moonpool;
using namespace moonpool::transfer;
using namespace moonpool::transfer::cuda;
using Clock = Deadline::Clock;

constexpr std::uint64_t kKib = 1024;
constexpr std::uint64_t kMib = 1024 * kKib;
constexpr std::chrono::milliseconds kLongestMeasurement{250};

struct Plan {
  int device = 0;
  bool fake = false;
  std::uint64_t bytes = 128 * kMib;  // of each direction
  std::vector<std::uint64_t> pieces{4 * kKib, 32 * kKib, 96 * kKib, kMib};
  std::vector<std::uint32_t> multiprocessors{1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64};
  std::vector<std::uint32_t> both_multiprocessors{2, 4, 8, 16, 32};
  std::vector<std::uint32_t> latency_multiprocessors{4, 8, 16, 32, 64};
  int calls = 9;
  std::uint64_t block = 2 * kMib;
  std::uint64_t block_piece = 32 * kKib;
  int block_calls = 300;
  std::uint64_t jobs = 256;  // of the call whose host cost is measured
};

[[noreturn]] void die(const std::string& text) {
  std::fprintf(stderr, "cuda_link: %s\n", text.c_str());
  std::exit(1);
}

void must(const Status& status) {
  if (!status.ok()) die(status.to_string());
}

template <typename T>
T must(Result<T> result) {
  must(result.status());
  return std::move(result).value();
}

Deadline soon() { return Deadline::after(std::chrono::seconds(30)); }

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double quantile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  return values[std::min(values.size() - 1, static_cast<std::size_t>(share * static_cast<double>(values.size())))];
}

std::string size_text(std::uint64_t bytes) {
  return bytes >= kMib ? std::to_string(bytes / kMib) + " MiB" : std::to_string(bytes / kKib) + " KiB";
}

const char* word(Direction direction) { return direction == Direction::kGather ? "put" : "get"; }

// -------------------------------------------------------------------------------------------------------------------------- output

// One figure: what it is of, and numbers by name, "rate" among them.
struct Number {
  const char* name;
  double value;
};

void tell(const char* path, const std::string& shape, const std::string& operation, const std::string& side, const char* unit,
          const std::vector<Number>& record) {
  std::printf(R"({"path": "%s", "shape": "%s", "operation": "%s", "side": "%s", "unit": "%s", "record": {)", path, shape.c_str(),
              operation.c_str(), side.c_str(), unit);
  const char* separator = "";
  for (const auto& [name, value] : record) {
    std::printf(R"(%s"%s": %.9g)", separator, name, value);
    separator = ", ";
  }
  std::printf("}}\n");
  std::fflush(stdout);
}

void tell_rate(const char* path, const std::string& shape, const std::string& operation, const std::string& side,
               const std::vector<double>& rates, std::uint32_t multiprocessors, bool checksums) {
  const auto [least, most] = std::ranges::minmax(rates);
  tell(path, shape, operation, side, "GB/s",
       {{"rate", quantile(rates, 0.5)},
        {"least", least},
        {"most", most},
        {"sms", double(multiprocessors)},
        {"checksums", double(checksums)}});
}

std::string side_text(std::uint32_t multiprocessors, bool checksums) {
  return std::to_string(multiprocessors) + " SMs" + (checksums ? ", checksums" : "");
}

// -------------------------------------------------------------------------------------------------------------------------- memory

enum class HostKind : std::uint8_t {
  kShared,       // as a segment of the pool is: in huge pages where the host has reserved some
  kTransparent,  // private memory for which transparent huge pages are asked
  kDriver,       // the driver's own
};

struct Kind {
  HostKind kind;
  const char* name;
};
constexpr Kind kKinds[] = {{HostKind::kShared, "shared, as a segment"},
                           {HostKind::kTransparent, "private, transparent huge pages"},
                           {HostKind::kDriver, "the driver's own"}};

// Host memory that HostRegions knows.
class HostMemory {
 public:
  HostMemory(Driver& driver, HostRegions& regions, HostKind kind, std::uint64_t size) : driver_(driver), regions_(regions), kind_(kind) {
    if (kind == HostKind::kDriver) {
      bytes_ = must(driver.allocate_host(size));
      regions.add_pinned(bytes_);
      return;
    }
    keeper_ = kind == HostKind::kShared ? shared(size) : transparent(size);
    std::memset(bytes_.data(), 1, size);
    regions.want(bytes_, keeper_, "cuda_link's memory");
    if (!regions.wait_settled(soon())) die("the host's memory is not pinned after 30 s");
  }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  ~HostMemory() {
    if (kind_ != HostKind::kDriver) return;
    regions_.forget(bytes_.data());
    driver_.free_host(bytes_);
  }
  [[nodiscard]] MutableBytes get() const { return bytes_; }

 private:
  std::shared_ptr<const void> shared(std::uint64_t size) {
    auto memory = SharedMemory::create_huge("cuda_link", size);
    if (!memory.ok()) memory = SharedMemory::create("cuda_link", size);
    auto kept = std::make_shared<SharedMemory>(must(std::move(memory)));
    bytes_ = kept->bytes().first(size);
    return kept;
  }
  std::shared_ptr<const void> transparent(std::uint64_t size) {
    void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("no mapping of " + size_text(size));
    static_cast<void>(::madvise(memory, size, MADV_HUGEPAGE));  // where they are off, the figures are those of small pages
    bytes_ = {static_cast<std::byte*>(memory), size};
    return std::shared_ptr<const void>(memory, [size](const void* begin) { ::munmap(const_cast<void*>(begin), size); });
  }

  Driver& driver_;
  HostRegions& regions_;
  const HostKind kind_;
  std::shared_ptr<const void> keeper_;
  MutableBytes bytes_;
};

// Memory of the device for pieces, and of the host for the same bytes.
struct Place {
  std::uint64_t device_address = 0;
  MutableBytes host;
};

// One direction's place.
class Memory {
 public:
  Memory(Driver& driver, HostRegions& regions, int device, std::uint64_t size)
      : driver_(driver), device_(device), host_(driver, regions, HostKind::kShared, size), address_(must(driver.allocate(device, size))) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { driver_.free(device_, address_); }
  [[nodiscard]] Place place() const { return {address_, host_.get()}; }

 private:
  Driver& driver_;
  const int device_;
  const HostMemory host_;
  const std::uint64_t address_;
};

// All of a memory's bytes in pieces that lie on the device in a random order; as one job, or as several of equal size.
class Pieces {
 public:
  Pieces(const Place& place, int device, std::uint64_t total, std::uint64_t piece, std::uint64_t jobs, bool checksums) {
    const std::uint64_t count = total / piece;
    std::vector<std::uint64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, std::mt19937_64(piece));
    for (const auto number : order) pieces_.push_back({place.device_address + number * piece, piece});
    const std::uint64_t each = count / jobs;
    for (std::uint64_t job = 0; job < jobs; ++job) {
      const std::uint64_t length = each * piece;
      jobs_.push_back({.device = device,
                       .pieces = std::span(pieces_).subspan(job * each, each),
                       .contiguous = place.host.subspan(job * length, length),
                       .length = length,
                       .checksums = {}});
      bytes_ += length;
    }
    if (!checksums) return;
    sums_.resize(chunks_of(jobs_.front().length) * jobs);
    for (std::uint64_t job = 0; job < jobs; ++job) {
      jobs_[job].checksums = std::span(sums_).subspan(job * sums_.size() / jobs, sums_.size() / jobs);
    }
  }
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;
  [[nodiscard]] std::span<const CopyJob> jobs() const { return jobs_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t count() const { return pieces_.size(); }
  [[nodiscard]] const std::vector<std::uint64_t>& checksums() const { return sums_; }

 private:
  std::vector<AddressRange> pieces_;
  std::vector<CopyJob> jobs_;
  std::vector<std::uint64_t> sums_;
  std::uint64_t bytes_ = 0;
};

// A stream and an event of ours, for what is measured without a Copier.
class Lane {
 public:
  Lane(Driver& driver, int device)
      : driver_(driver), device_(device), stream_(must(driver.create_stream(device))), event_(must(driver.create_event(device))) {}
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  ~Lane() {
    driver_.destroy_event(device_, event_);
    driver_.destroy_stream(device_, stream_);
  }
  [[nodiscard]] Stream stream() const { return stream_; }
  [[nodiscard]] Event event() const { return event_; }
  void finish() {
    must(driver_.record(device_, event_, stream_));
    while (!must(driver_.done(device_, event_))) std::this_thread::yield();
  }

 private:
  Driver& driver_;
  const int device_;
  const Stream stream_;
  const Event event_;
};

// ----------------------------------------------------------------------------------------------------------------------- measuring

struct Times {
  double submit = 0;
  double wait = 0;
};

Times move(Copier& copier, Direction direction, std::span<const CopyJob> jobs) {
  const auto start = Clock::now();
  const auto ticket = must(copier.submit(direction, jobs, Stream::kLegacyDefault));
  const double submitted = seconds_since(start);
  must(copier.wait(*ticket, soon()));
  return {submitted, seconds_since(start) - submitted};
}

// Rates of `call`, which moves that many bytes: of up to `calls` of them, fewer when they are slow.
template <typename Call>
std::vector<double> rates_of(int calls, std::uint64_t bytes, const Call& call) {
  call();
  std::vector<double> rates;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    call();
    rates.push_back(static_cast<double>(bytes) / seconds_since(start) / 1e9);
  } while (static_cast<int>(rates.size()) < calls && Clock::now() - begin < kLongestMeasurement);
  return rates;
}

class Bench {
 public:
  Bench(Driver& driver, Plan plan)
      : driver_(driver),
        plan_(std::move(plan)),
        regions_(driver),
        out_(driver, regions_, plan_.device, plan_.bytes),
        in_(driver, regions_, plan_.device, plan_.bytes) {
    if (!regions_.device_address(plan_.device, out_.place().host) || !regions_.device_address(plan_.device, in_.place().host)) {
      die("the host's memory could not be pinned: the log above says why");
    }
  }

  void run() {
    compare();
    whole_buffer();
    rates();
    both_at_once();
    host_memories();
    driver_calls();
    latency();
    host_cost();
  }

 private:
  [[nodiscard]] Settings settings(std::uint32_t multiprocessors, bool after_default_stream = true) const {
    Settings settings;
    settings.multiprocessors = multiprocessors;
    settings.after_default_stream = after_default_stream;
    return settings;
  }
  [[nodiscard]] Place place(Direction direction) const { return (direction == Direction::kGather ? out_ : in_).place(); }

  // What a scatter has written comes back by a gather, with the same checksums.
  void compare() {
    Copier copier(driver_, regions_, Settings{});
    std::mt19937_64 random(1);
    std::vector<std::byte> wanted(plan_.bytes);
    for (std::size_t at = 0; at < wanted.size(); at += 8) {
      const std::uint64_t word = random();
      std::memcpy(wanted.data() + at, &word, 8);
    }
    for (const auto piece : plan_.pieces) {
      const Pieces pieces(in_.place(), plan_.device, plan_.bytes, piece, 1, true);
      std::ranges::copy(wanted, in_.place().host.begin());
      move(copier, Direction::kScatter, pieces.jobs());
      const auto scattered = pieces.checksums();
      std::memset(in_.place().host.data(), 0, plan_.bytes);
      move(copier, Direction::kGather, pieces.jobs());
      if (std::memcmp(in_.place().host.data(), wanted.data(), pieces.bytes()) != 0 || pieces.checksums() != scattered) {
        die("pieces of " + size_text(piece) + " came back with other bytes or checksums");
      }
    }
  }

  void copy_whole(Direction direction, const Place& place, std::uint64_t bytes, Lane& lane) {
    const auto host = must(driver_.device_address(plan_.device, place.host.data()));
    const auto there = place.device_address;
    const bool gather = direction == Direction::kGather;
    must(driver_.copy(plan_.device, gather ? host : there, gather ? there : host, bytes, lane.stream()));
    lane.finish();
  }

  void whole_buffer() {
    Lane lane(driver_, plan_.device), other(driver_, plan_.device);
    for (const auto direction : {Direction::kGather, Direction::kScatter}) {
      const auto rates = rates_of(plan_.calls, plan_.bytes, [&] { copy_whole(direction, place(direction), plan_.bytes, lane); });
      tell_rate("link", "whole buffer", word(direction), "one copy", rates, 0, false);
      std::vector<double> micros;
      for (int call = 0; call < plan_.block_calls; ++call) {
        const auto start = Clock::now();
        copy_whole(direction, place(direction), plan_.block, lane);
        micros.push_back(seconds_since(start) * 1e6);
      }
      const double p50 = quantile(micros, 0.5);
      tell("link latency", size_text(plan_.block), word(direction), "one copy", "calls/s",
           {{"rate", 1e6 / p50}, {"p50_us", p50}, {"p99_us", quantile(micros, 0.99)}});
    }
    const auto rates = rates_of(plan_.calls, 2 * plan_.bytes, [&] {
      std::thread thread([&] { copy_whole(Direction::kScatter, in_.place(), plan_.bytes, other); });
      copy_whole(Direction::kGather, out_.place(), plan_.bytes, lane);
      thread.join();
    });
    tell_rate("link", "whole buffer", "both", "one copy", rates, 0, false);
  }

  void rates() {
    for (const auto multiprocessors : plan_.multiprocessors) {
      Copier copier(driver_, regions_, settings(multiprocessors));
      for (const auto piece : plan_.pieces) {
        for (const auto direction : {Direction::kGather, Direction::kScatter}) {
          for (const bool checksums : {false, true}) {
            const Pieces pieces(place(direction), plan_.device, plan_.bytes, piece, 1, checksums);
            const auto rates = rates_of(plan_.calls, pieces.bytes(), [&] { move(copier, direction, pieces.jobs()); });
            tell_rate("link", size_text(piece), word(direction), side_text(multiprocessors, checksums), rates, multiprocessors, checksums);
          }
        }
      }
    }
  }

  // A thread each way, each with its own memory and all of `multiprocessors`; a call is over when both are.
  void both_at_once() {
    for (const auto multiprocessors : plan_.both_multiprocessors) {
      Copier copier(driver_, regions_, settings(multiprocessors));
      for (const auto piece : plan_.pieces) {
        for (const bool checksums : {false, true}) {
          const Pieces out(out_.place(), plan_.device, plan_.bytes, piece, 1, checksums),
              in(in_.place(), plan_.device, plan_.bytes, piece, 1, checksums);
          const auto rates = rates_of(plan_.calls, out.bytes() + in.bytes(), [&] {
            std::thread thread([&] { move(copier, Direction::kScatter, in.jobs()); });
            move(copier, Direction::kGather, out.jobs());
            thread.join();
          });
          tell_rate("link", size_text(piece), "both", side_text(multiprocessors, checksums), rates, multiprocessors, checksums);
        }
      }
    }
  }

  // Whether it matters what the host's memory is made of.
  void host_memories() {
    Copier copier(driver_, regions_, Settings{});
    Lane lane(driver_, plan_.device);
    for (const auto& [kind, name] : kKinds) {
      const HostMemory host(driver_, regions_, kind, plan_.bytes);
      for (const auto direction : {Direction::kGather, Direction::kScatter}) {
        const Place where{place(direction).device_address, host.get()};
        const auto whole = rates_of(plan_.calls, plan_.bytes, [&] { copy_whole(direction, where, plan_.bytes, lane); });
        tell_rate("link memory", name, word(direction), "one copy", whole, 0, false);
        for (const auto piece : plan_.pieces) {
          const Pieces pieces(where, plan_.device, plan_.bytes, piece, 1, true);
          const auto rates = rates_of(plan_.calls, pieces.bytes(), [&] { move(copier, direction, pieces.jobs()); });
          tell_rate("link memory", name, word(direction), size_text(piece), rates, Settings{}.multiprocessors, true);
        }
      }
    }
  }

  // What the driver takes for each of the calls that a Copier makes of it, and a kernel with nothing to do.
  void driver_calls() {
    Lane lane(driver_, plan_.device);
    const auto tell_call = [&](const char* name, const auto& call) {
      std::vector<double> micros;
      for (int number = 0; number < plan_.block_calls; ++number) {
        const auto start = Clock::now();
        call();
        micros.push_back(seconds_since(start) * 1e6);
        lane.finish();
      }
      const double p50 = quantile(micros, 0.5);
      tell("link driver", name, "call", "driver", "calls/s", {{"rate", 1e6 / p50}, {"p50_us", p50}, {"p99_us", quantile(micros, 0.99)}});
    };
    const auto launch = [&] {
      const Status status = driver_.launch(plan_.device, Kernel::kGather, {1, kThreads}, MoveArguments{}, lane.stream());
      if (status.code() != ErrorCode::kNotSupported) must(status);
    };
    tell_call("record", [&] { must(driver_.record(plan_.device, lane.event(), lane.stream())); });
    tell_call("record on the default stream", [&] { must(driver_.record(plan_.device, lane.event(), Stream::kLegacyDefault)); });
    tell_call("wait", [&] { must(driver_.wait(plan_.device, lane.stream(), lane.event())); });
    tell_call("done", [&] { static_cast<void>(must(driver_.done(plan_.device, lane.event()))); });
    tell_call("locate", [&] { static_cast<void>(driver_.locate(out_.place().device_address)); });
    tell_call("launch", launch);
    tell_call("launch to its end", [&] {
      launch();
      lane.finish();
    });
    tell_call("record to its end", [&] { lane.finish(); });
  }

  void latency() {
    const Pieces smallest(out_.place(), plan_.device, plan_.pieces.front(), plan_.pieces.front(), 1, false);
    Copier copier(driver_, regions_, Settings{});
    tell_latency(copier, Direction::kGather, smallest, size_text(smallest.bytes()) + ", the least", "default", 0);
    for (const auto multiprocessors : plan_.latency_multiprocessors) {
      for (const bool ordered : {true, false}) {
        Copier ours(driver_, regions_, settings(multiprocessors, ordered));
        for (const auto direction : {Direction::kGather, Direction::kScatter}) {
          for (const bool checksums : {false, true}) {
            const Pieces block(place(direction), plan_.device, plan_.block, plan_.block_piece, 1, checksums);
            const std::string side = side_text(multiprocessors, checksums) + (ordered ? "" : ", unordered");
            tell_latency(ours, direction, block, size_text(plan_.block), side, multiprocessors);
          }
        }
      }
    }
  }

  void tell_latency(Copier& copier, Direction direction, const Pieces& block, const std::string& shape, const std::string& side,
                    std::uint32_t multiprocessors) {
    std::vector<double> all, submits, waits;
    for (int call = -plan_.block_calls / 4; call < plan_.block_calls; ++call) {
      const auto times = move(copier, direction, block.jobs());
      if (call < 0) continue;
      all.push_back((times.submit + times.wait) * 1e6);
      submits.push_back(times.submit * 1e6);
      waits.push_back(times.wait * 1e6);
    }
    const double p50 = quantile(all, 0.5);
    tell("link latency", shape, word(direction), side, "calls/s",
         {{"rate", 1e6 / p50},
          {"p50_us", p50},
          {"p99_us", quantile(all, 0.99)},
          {"submit_us", quantile(submits, 0.5)},
          {"wait_us", quantile(waits, 0.5)},
          {"sms", double(multiprocessors)}});
  }

  // submit() for the most pieces: all as one job, and as many jobs as a prompt has blocks.
  void host_cost() {
    Copier copier(driver_, regions_, Settings{});
    const auto piece = plan_.pieces.front();
    for (const auto direction : {Direction::kGather, Direction::kScatter}) {
      for (const auto jobs : {std::uint64_t{1}, plan_.jobs}) {
        const Pieces pieces(place(direction), plan_.device, plan_.bytes, piece, jobs, true);
        std::vector<double> submits, waits;
        for (int call = -1; call < plan_.calls; ++call) {
          const auto times = move(copier, direction, pieces.jobs());
          if (call < 0) continue;
          submits.push_back(times.submit);
          waits.push_back(times.wait);
        }
        const double submit = quantile(submits, 0.5), count = static_cast<double>(pieces.count());
        tell("link host",
             std::to_string(pieces.count()) + " pieces of " + size_text(piece) + " in " + std::to_string(jobs) +
                 (jobs == 1 ? " job" : " jobs"),
             word(direction), "submit", "pieces/s",
             {{"rate", count / submit},
              {"ns_a_piece", submit / count * 1e9},
              {"submit_us", submit * 1e6},
              {"wait_us", quantile(waits, 0.5) * 1e6}});
      }
    }
  }

  Driver& driver_;
  const Plan plan_;
  HostRegions regions_;
  const Memory out_, in_;
};

Plan parse(int argc, char** argv) {
  Plan plan;
  for (int at = 1; at < argc; ++at) {
    const std::string_view argument = argv[at];
    if (argument == "--quick") {
      plan.calls = 5;
      plan.block_calls = 100;
    } else if (argument == "--fake") {
      plan.fake = true;
      plan.bytes = kMib;
      plan.pieces = {4 * kKib, 32 * kKib};
      plan.multiprocessors = {1, 16};
      plan.both_multiprocessors = plan.latency_multiprocessors = {16};
      plan.calls = 1;
      plan.block = 128 * kKib;
      plan.block_calls = 2;
      plan.jobs = 4;
    } else if (argument == "--device" && at + 1 < argc) {
      plan.device = std::atoi(argv[++at]);
    } else {
      die("usage: cuda_link [--device 0] [--quick] [--fake]");
    }
  }
  return plan;
}

std::unique_ptr<Driver> driver_for(const Plan& plan) {
  if (!plan.fake) return must(open_driver());
#ifdef MOONPOOL_FAKE_CUDA
  return FakeDriver::create({.devices = 1, .device_bytes = 16 * kMib});
#else
  die("this build has no fake driver: MOONPOOL_BUILD_TESTS is off in it");
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const Plan plan = parse(argc, argv);
  const auto driver = driver_for(plan);
  if (plan.device < 0 || plan.device >= driver->device_count()) die("there is no GPU " + std::to_string(plan.device));
  const auto facts = must(driver->facts(plan.device));
  std::printf(R"({"device": "%s", "multiprocessors": %d})"
              "\n",
              facts.name.c_str(), facts.multiprocessors);
  const auto start = Clock::now();
  Bench(*driver, plan).run();
  std::printf(R"({"done": "link, %.1f s"})"
              "\n",
              seconds_since(start));
  return 0;
}
