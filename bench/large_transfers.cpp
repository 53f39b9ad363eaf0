// Large transfers over TCP between two processes, beside iperf3 and a plain socket loop, interleaved in one run: how much of what the
// machine's loopback gives is left for a user of the transport, of the store, and of the transfer engine.
//
// Children: a plain socket sink and source, an owner behind the wire, a transfer engine, and a whole node with its master. Objects are 16
// MiB, or vLLM's shape (24 objects of 30 pieces of 96 KiB per call). Space is emptied between measurements, outside the timed part. Prints
// GB/s, the ratio to iperf3 of the same round (median over rounds), and CPU seconds per GB of both processes.
//   large_transfers [--rounds 5] [--seconds 0.4] [--threads 1,4,16] [--only text] [--no-iperf]
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/logging.h"
#include "child_process.h"
#include "master/master.h"
#include "net/server.h"
#include "plain_socket.h"
#include "store/client.h"
#include "transfer/owner.h"
#include "transfer/tcp/tcp_transport.h"
#include "transfer/transfer_engine.h"

namespace {

using namespace moonpool;
using transfer::ConstBytes;
using transfer::MutableBytes;
using Clock = Deadline::Clock;

constexpr std::uint64_t kSegment = std::uint64_t{3} << 30;
constexpr std::uint64_t kEngineBuffer = std::uint64_t{16} * (16U << 20);
constexpr std::size_t kMostThreads = 64;

struct Arguments {
  int rounds = 5;
  double seconds = 0.4;
  std::vector<int> threads{1, 4, 16};
  std::string only;
  bool iperf = true;
};

[[noreturn]] void die(const std::string& text) {
  std::fprintf(stderr, "large_transfers: %s\n", text.c_str());
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

// ---------------------------------------------------------------- children

// Every connection begins with its direction ('w' or 'r') and the transfer's size; then each transfer is that many bytes one way and one
// byte the other, into and from memory of its own.
struct PlainHello {
  char direction;
  std::uint64_t size;
};

void serve_plain_connection(int fd) {
  PlainHello hello{};
  std::byte note{};
  if (!bench::receive_all(fd, &hello, sizeof hello)) return;
  // As much memory as an owner's share, so that both write to memory that is in no cache.
  const std::size_t slots = 12;
  std::vector<std::byte> memory(hello.size * slots, std::byte{1});
  for (std::size_t i = 0;; i = (i + 1) % slots) {
    std::byte* slot = memory.data() + i * hello.size;
    const bool write = hello.direction == 'w';
    if (write && !(bench::receive_all(fd, slot, hello.size) && bench::send_all(fd, &note, 1))) break;
    if (!write && !(bench::receive_all(fd, &note, 1) && bench::send_all(fd, slot, hello.size))) break;
  }
  ::close(fd);
}

void serve_plain(int, int out) {
  const auto listener = bench::listen_plainly();
  bench::tell(out, listener.port);
  for (;;) std::thread(serve_plain_connection, bench::accept_plainly(listener)).detach();
}

struct OwnerAddress {
  std::uint16_t port;
  Incarnation incarnation;
};

void serve_owner(int in, int out) {
  transfer::Owner owner;
  must(owner.adopt_term(Term{1}, soon()));
  const Incarnation incarnation = must(owner.mount(kSegment));
  while (!owner.segments().front().touched) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  net::Server server(net::Identity{NodeId::generate(), "", "owner"}, net::ServerOptions{});
  owner.serve(server);
  must(server.start());
  bench::tell(out, OwnerAddress{server.port(), incarnation});
  std::uint64_t sequence = 0;
  bench::answer_commands(in, out, [&] {
    std::vector<transfer::RetirementOrder> orders;
    for (const auto& entry : owner.catalogue(incarnation)) {
      orders.push_back({++sequence, {incarnation, entry.offset, entry.length, entry.version}});
    }
    if (owner.retire(orders, soon()).size() != orders.size()) ::_exit(1);
  });
}

struct EngineAddress {
  std::uint16_t port;
  std::uint64_t buffer;
};

std::unique_ptr<transfer::TransferEngine> make_engine(std::vector<std::byte>& memory) {
  transfer::EngineOptions options;
  options.name = "127.0.0.1";
  options.metadata_url = "P2PHANDSHAKE";
  auto engine = must(transfer::TransferEngine::create(options));
  must(engine->register_memory(reinterpret_cast<std::uint64_t>(memory.data()), memory.size()));
  return engine;
}

void serve_engine(int in, int out) {
  std::vector<std::byte> memory(kEngineBuffer, std::byte{1});
  const auto engine = make_engine(memory);
  bench::tell(out, EngineAddress{engine->port(), reinterpret_cast<std::uint64_t>(memory.data())});
  bench::answer_commands(in, out, [] {});
}

void serve_node(int in, int out) {
  master::MasterConfig config;
  config.port = 0;
  config.metrics_port = 0;
  config.metric_reporting = false;
  config.recovery_window = std::chrono::milliseconds(1);
  const auto master = must(master::Master::start(config));
  store::ClientOptions options;
  options.local_hostname = "127.0.0.1";
  options.master_address = "127.0.0.1:" + std::to_string(master->port());
  options.segment_size = kSegment;
  const auto node = must(store::Client::create(options));
  bench::tell(out, master->port());
  bench::answer_commands(in, out, [] {});
}

// ---------------------------------------------------------------- what is moved

// A call's memory: `objects` values of `pieces` pieces each.
struct Shape {
  const char* name;
  std::size_t objects;
  std::size_t pieces;
  std::size_t piece;

  [[nodiscard]] std::size_t object() const { return pieces * piece; }
  [[nodiscard]] std::size_t call() const { return objects * object(); }
};
constexpr Shape kLarge{"16 MiB", 1, 1, 16U << 20};
constexpr Shape kVllm{"vLLM", 24, 30, 96U << 10};

struct Memory {
  explicit Memory(const Shape& shape) : bytes(shape.call(), std::byte{7}) {
    // Scattered as an engine's layers are: the pieces of an object are not neighbours.
    for (std::size_t o = 0; o < shape.objects; ++o) {
      for (std::size_t p = 0; p < shape.pieces; ++p) {
        const MutableBytes piece(bytes.data() + (p * shape.objects + o) * shape.piece, shape.piece);
        sinks.push_back(piece);
        sources.push_back(piece);
      }
    }
  }
  Memory(Memory&&) = default;  // the views stay: a moved vector keeps its memory
  [[nodiscard]] std::span<const ConstBytes> source(const Shape& shape, std::size_t object) const {
    return std::span(sources).subspan(object * shape.pieces, shape.pieces);
  }
  [[nodiscard]] std::span<const MutableBytes> sink(const Shape& shape, std::size_t object) const {
    return std::span(sinks).subspan(object * shape.pieces, shape.pieces);
  }
  std::vector<std::byte> bytes;
  std::vector<ConstBytes> sources;
  std::vector<MutableBytes> sinks;
};

struct Figures {
  double gigabytes_per_second = 0;
  double cpu_per_gigabyte = 0;       // ours
  double peer_cpu_per_gigabyte = 0;  // the other process's
};

double own_cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Runs `once(thread, call)` on all threads for about `seconds`, at most `most_calls` times in all. Bytes moved per second.
Figures measure(int threads, double seconds, std::uint64_t bytes, std::uint64_t most_calls, const bench::ChildProcess& peer,
                const std::function<void(int, std::uint64_t)>& once) {
  std::atomic<std::uint64_t> calls{0};
  std::atomic<std::uint64_t> done{0};
  const double cpu = own_cpu_seconds();
  const double peer_cpu = peer.cpu_seconds();
  const auto start = Clock::now();
  const auto end = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      while (Clock::now() < end) {
        const std::uint64_t call = calls.fetch_add(1);
        if (call >= most_calls) return;
        once(t, call);
        done.fetch_add(1);
      }
    });
  }
  for (auto& worker : workers) worker.join();
  const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  const double gigabytes = static_cast<double>(bytes * done.load()) / 1e9;
  return {gigabytes / elapsed, (own_cpu_seconds() - cpu) / gigabytes, (peer.cpu_seconds() - peer_cpu) / gigabytes};
}

// ---------------------------------------------------------------- the measurements

double iperf(int streams, double seconds) {
  static int port = 20000 + ::getpid() % 20000;
  ++port;
  const std::string server = "iperf3 -s -1 -p " + std::to_string(port) + " > /dev/null 2>&1 & sleep 0.15; ";
  const std::string client = "iperf3 -c 127.0.0.1 -J -p " + std::to_string(port) + " -P " + std::to_string(streams) + " -t " +
                             std::to_string(std::max(1, static_cast<int>(seconds + 0.5)));
  FILE* output = ::popen((server + client).c_str(), "r");
  if (output == nullptr) return 0;
  std::string text;
  for (char buffer[4096]; const std::size_t got = std::fread(buffer, 1, sizeof buffer, output);) text.append(buffer, got);
  ::pclose(output);
  const auto sum = text.find("\"sum_received\"");
  const auto field = sum == std::string::npos ? sum : text.find("\"bits_per_second\":", sum);
  return field == std::string::npos ? 0 : std::strtod(text.c_str() + field + 18, nullptr) / 8e9;
}

class Bench {
 public:
  explicit Bench(Arguments arguments)
      : arguments_(std::move(arguments)), plain_(serve_plain), owner_(serve_owner), engine_(serve_engine), node_(serve_node) {
    plain_port_ = plain_.read_value<std::uint16_t>();
    owner_address_ = owner_.read_value<OwnerAddress>();
    engine_address_ = engine_.read_value<EngineAddress>();
    master_port_ = node_.read_value<std::uint16_t>();
    lanes_.emplace(net::Identity{NodeId::generate(), "", "client"});
    transport_.emplace(*lanes_);
    store::ClientOptions options;
    options.local_hostname = "127.0.0.1";
    options.master_address = "127.0.0.1:" + std::to_string(master_port_);
    options.local_buffer_size = 16U << 20;
    options.paths = "tcp";
    client_ = must(store::Client::create(options));
    engine_memory_.assign(kEngineBuffer, std::byte{1});
    near_engine_ = make_engine(engine_memory_);
  }

  void run() {
    for (const int threads : arguments_.threads) {
      for (int round = 0; round < arguments_.rounds; ++round) {
        const double reference = arguments_.iperf ? iperf(std::min(threads, 4), arguments_.seconds) : 1;
        note("iperf3", threads, {reference, 0, 0}, reference);
        for (const Shape* shape : {&kLarge, &kVllm}) run_shape(*shape, threads, reference);
      }
      print(threads);
      rows_.clear();
      order_.clear();
    }
  }

 private:
  struct Row {
    std::vector<double> speed;
    std::vector<double> ratio;
    std::vector<double> cpu;
    std::vector<double> peer_cpu;
  };

  [[nodiscard]] bool wanted(const std::string& name) const { return name.find(arguments_.only) != std::string::npos; }

  void run_shape(const Shape& shape, int threads, double reference) {
    const std::string name = shape.name;
    std::vector<Memory> memory;
    for (int t = 0; t < threads; ++t) memory.emplace_back(shape);
    if (wanted("socket write " + name)) note("socket write " + name, threads, plain(shape, threads, 'w', memory), reference);
    if (wanted("socket read " + name)) note("socket read " + name, threads, plain(shape, threads, 'r', memory), reference);
    if (wanted("transport " + name)) run_transport(shape, threads, memory, reference);
    if (wanted("store " + name)) run_store(shape, threads, memory, reference);
    if (wanted("engine " + name)) run_engine(shape, threads, reference);
  }

  Figures plain(const Shape& shape, int threads, char direction, std::vector<Memory>& memory) {
    std::vector<int> sockets;
    for (int t = 0; t < threads; ++t) {
      sockets.push_back(bench::connect_plainly(plain_port_));
      const PlainHello hello{direction, shape.call()};
      if (!bench::send_all(sockets.back(), &hello, sizeof hello)) die("connect");
    }
    const auto once = [&](int t, std::uint64_t) {
      std::byte note{};
      auto& bytes = memory[static_cast<std::size_t>(t)].bytes;
      const int fd = sockets[static_cast<std::size_t>(t)];
      if (direction == 'w') {
        if (!bench::send_all(fd, bytes.data(), bytes.size()) || !bench::receive_all(fd, &note, 1)) die("plain write");
      } else {
        if (!bench::send_all(fd, &note, 1) || !bench::receive_all(fd, bytes.data(), bytes.size())) die("plain read");
      }
    };
    for (int t = 0; t < threads; ++t) once(t, 0);
    const auto figures = measure(threads, arguments_.seconds, shape.call(), UINT64_MAX, plain_, once);
    for (const int fd : sockets) ::close(fd);
    return figures;
  }

  void run_transport(const Shape& shape, int threads, std::vector<Memory>& memory, double reference) {
    const transfer::Peer peer{NodeId(), {"127.0.0.1", owner_address_.port}};
    const std::uint64_t room = kSegment / shape.call();
    owner_.command();
    std::vector<std::uint64_t> checksums(room * shape.objects);
    const auto extent = [&](std::uint64_t call, std::size_t object) {
      return transfer::ExtentRef{owner_address_.incarnation, call * shape.call() + object * shape.object(), shape.object(),
                                 Version{Term{1}, first_version_ + call * shape.objects + object}};
    };
    std::atomic<std::uint64_t> written{0};
    const auto write = [&](int t, std::uint64_t call) {
      std::vector<transfer::WriteOperation> operations(shape.objects);
      for (std::size_t o = 0; o < shape.objects; ++o) {
        operations[o].extent = extent(call, o);
        operations[o].key = "some key of a usual length, with its hash: 0123456789abcdef";
        operations[o].source = memory[static_cast<std::size_t>(t)].source(shape, o);
      }
      transport_->write(peer, operations, soon());
      for (std::size_t o = 0; o < shape.objects; ++o) {
        must(operations[o].status);
        checksums[call * shape.objects + o] = operations[o].checksum;
      }
      written.fetch_add(1);
    };
    note("transport write " + std::string(shape.name), threads, measure(threads, arguments_.seconds, shape.call(), room, owner_, write),
         reference);
    const std::uint64_t there = written.load();
    const auto read = [&](int t, std::uint64_t any) {
      const std::uint64_t call = any % there;
      std::vector<transfer::ReadOperation> operations(shape.objects);
      for (std::size_t o = 0; o < shape.objects; ++o) {
        operations[o].extent = extent(call, o);
        operations[o].length = shape.object();
        operations[o].destination = memory[static_cast<std::size_t>(t)].sink(shape, o);
        operations[o].checksum = checksums[call * shape.objects + o];
      }
      transport_->read(peer, operations, soon());
      for (const auto& operation : operations) must(operation.status);
    };
    note("transport read " + std::string(shape.name), threads, measure(threads, arguments_.seconds, shape.call(), UINT64_MAX, owner_, read),
         reference);
    first_version_ += room * shape.objects;
  }

  void run_store(const Shape& shape, int threads, std::vector<Memory>& memory, double reference) {
    const std::uint64_t room = kSegment * 8 / 10 / shape.call();
    must(client_->remove_all(true).status());
    const auto keys_of = [&](std::uint64_t call) {
      std::vector<std::string> keys;
      for (std::size_t o = 0; o < shape.objects; ++o)
        keys.push_back("model@tp_rank:0@group:0@" + std::to_string(call * shape.objects + o) + "-0123456789abcdef0123456789abcdef");
      return keys;
    };
    std::atomic<std::uint64_t> written{0};
    const auto put = [&](int t, std::uint64_t call) {
      const auto keys = keys_of(call);
      const std::vector<std::string_view> views(keys.begin(), keys.end());
      std::vector<std::span<const ConstBytes>> sources;
      for (std::size_t o = 0; o < shape.objects; ++o) sources.push_back(memory[static_cast<std::size_t>(t)].source(shape, o));
      for (const auto code : client_->put(views, sources)) {
        if (code != 0) die("put: " + std::to_string(code));
      }
      written.fetch_add(1);
    };
    note("store put " + std::string(shape.name), threads, measure(threads, arguments_.seconds, shape.call(), room, node_, put), reference);
    const std::uint64_t there = written.load();
    const auto get = [&](int t, std::uint64_t any) {
      const auto keys = keys_of(any % there);
      const std::vector<std::string_view> views(keys.begin(), keys.end());
      std::vector<std::span<const MutableBytes>> sinks;
      for (std::size_t o = 0; o < shape.objects; ++o) sinks.push_back(memory[static_cast<std::size_t>(t)].sink(shape, o));
      for (const auto count : client_->get_into(views, sinks, true)) {
        if (count != static_cast<std::int64_t>(shape.object())) die("get: " + std::to_string(count));
      }
    };
    note("store get " + std::string(shape.name), threads, measure(threads, arguments_.seconds, shape.call(), UINT64_MAX, node_, get),
         reference);
  }

  void run_engine(const Shape& shape, int threads, double reference) {
    const std::string peer = "127.0.0.1:" + std::to_string(engine_address_.port);
    const std::uint64_t share = kEngineBuffer / static_cast<std::uint64_t>(threads);
    const std::uint64_t size = std::min<std::uint64_t>(shape.call(), share / shape.piece * shape.piece);
    for (const auto opcode : {transfer::Opcode::kWrite, transfer::Opcode::kRead}) {
      const auto once = [&](int t, std::uint64_t) {
        std::vector<transfer::Piece> pieces;
        for (std::uint64_t at = 0; at < size; at += shape.piece) {
          const std::uint64_t offset = static_cast<std::uint64_t>(t) * share + at;
          pieces.push_back({reinterpret_cast<std::uint64_t>(engine_memory_.data()) + offset, engine_address_.buffer + offset, shape.piece});
        }
        must(near_engine_->transfer(peer, opcode, pieces));
      };
      note((opcode == transfer::Opcode::kWrite ? "engine write " : "engine read ") + std::string(shape.name), threads,
           measure(threads, arguments_.seconds, size, UINT64_MAX, engine_, once), reference);
    }
  }

  void note(const std::string& name, int, const Figures& figures, double reference) {
    if (!rows_.contains(name)) order_.push_back(name);
    Row& row = rows_[name];
    row.speed.push_back(figures.gigabytes_per_second);
    row.ratio.push_back(reference > 0 ? figures.gigabytes_per_second / reference : 0);
    row.cpu.push_back(figures.cpu_per_gigabyte);
    row.peer_cpu.push_back(figures.peer_cpu_per_gigabyte);
  }

  static double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values[values.size() / 2];
  }

  void print(int threads) {
    std::printf("%d thread%s\n%-26s %8s %10s %9s %9s\n", threads, threads == 1 ? "" : "s", "work", "GB/s", "of iperf3", "CPU s/GB",
                "peer's");
    for (const auto& name : order_) {
      const Row& row = rows_[name];
      std::printf("%-26s %8.2f %10.2f %9.3f %9.3f\n", name.c_str(), median(row.speed), median(row.ratio), median(row.cpu),
                  median(row.peer_cpu));
    }
    std::fflush(stdout);
  }

  const Arguments arguments_;
  // Forked before this process has threads of its own.
  const bench::ChildProcess plain_;
  const bench::ChildProcess owner_;
  const bench::ChildProcess engine_;
  const bench::ChildProcess node_;
  std::uint16_t plain_port_ = 0;
  OwnerAddress owner_address_{};
  EngineAddress engine_address_{};
  std::uint16_t master_port_ = 0;
  std::optional<net::LanePool> lanes_;
  std::optional<transfer::TcpTransport> transport_;
  std::unique_ptr<store::Client> client_;
  std::vector<std::byte> engine_memory_;
  std::unique_ptr<transfer::TransferEngine> near_engine_;
  std::uint64_t first_version_ = 1;
  std::map<std::string, Row> rows_;
  std::vector<std::string> order_;
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--no-iperf") {
      arguments.iperf = false;
      continue;
    }
    if (flag == "--rounds") {
      arguments.rounds = std::max(1, std::atoi(value));
    } else if (flag == "--seconds") {
      arguments.seconds = std::atof(value);
    } else if (flag == "--only") {
      arguments.only = value;
    } else if (flag == "--threads") {
      arguments.threads.clear();
      for (const char* at = value; *at != '\0'; at += std::strcspn(at, ",") + (at[std::strcspn(at, ",")] == ',' ? 1 : 0))
        arguments.threads.push_back(std::clamp(std::atoi(at), 1, static_cast<int>(kMostThreads)));
    } else {
      die("unknown flag " + flag + "; see the top of bench/large_transfers.cpp");
    }
    ++i;
  }
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  Bench(parse(argc, argv)).run();
  return 0;
}
