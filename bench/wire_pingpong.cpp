// The wire against a plain socket loop, in one process and one run, over loopback: the round trip of 1 KiB, and 16 MiB payloads both ways.
//
// The socket loop is the limit that this machine sets: blocking send and recv of the same sizes between two threads, no frame, no checksum.
//   wire_pingpong [seconds per measurement, default 2] [--json]
// With --json: one JSON line a cell, as ./moonpool bench reads it.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string_view>
#include <thread>
#include <vector>

#include "net/lane.h"
#include "net/server.h"
#include "net/socket.h"
#include "plain_socket.h"

namespace {

using namespace moonpool;
using namespace moonpool::net;
using Clock = Deadline::Clock;

constexpr std::size_t kSmall = 1024;
constexpr std::size_t kLarge = 16U << 20;

Deadline soon() { return Deadline::after(std::chrono::seconds(20)); }

void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "wire_pingpong: %s\n", status.to_string().c_str());
  std::exit(1);
}

struct Times {
  double median_us;
  double p99_us;
  double per_second;
};

Times measure(double seconds, const std::function<void()>& once) {
  for (int i = 0; i < 20; ++i) once();
  std::vector<double> times;
  const auto start = Clock::now();
  for (auto now = start; now - start < std::chrono::duration<double>(seconds);) {
    once();
    const auto end = Clock::now();
    times.push_back(std::chrono::duration<double, std::micro>(end - now).count());
    now = end;
  }
  const double total = std::chrono::duration<double>(Clock::now() - start).count();
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[times.size() * 99 / 100], static_cast<double>(times.size()) / total};
}

// ---------------------------------------------------------------- the plain loop

// A connection whose far end takes `request` bytes and answers `answer` bytes, for ever.
class PlainPeer {
 public:
  PlainPeer(std::size_t request, std::size_t answer) {
    const bench::PlainListener listener = bench::listen_plainly();
    near_.reset(bench::connect_plainly(listener.port));
    far_.reset(bench::accept_plainly(listener));
    ::close(listener.fd);
    thread_ = std::thread([this, request, answer] {
      std::vector<std::byte> in(request);
      const std::vector<std::byte> out(answer, std::byte{1});
      while (bench::receive_all(far_.get(), in.data(), in.size()) && bench::send_all(far_.get(), out.data(), out.size())) {
      }
    });
  }
  ~PlainPeer() {
    ::shutdown(near_.get(), SHUT_RDWR);
    thread_.join();
  }
  [[nodiscard]] int fd() const { return near_.get(); }

 private:
  UniqueFd near_;
  UniqueFd far_;
  std::thread thread_;
};

Times plain(double seconds, std::size_t request, std::size_t answer) {
  const PlainPeer peer(request, answer);
  const std::vector<std::byte> out(request, std::byte{1});
  std::vector<std::byte> in(answer);
  return measure(seconds, [&] {
    if (!bench::send_all(peer.fd(), out.data(), out.size()) || !bench::receive_all(peer.fd(), in.data(), in.size())) std::exit(1);
  });
}

// ---------------------------------------------------------------- the wire

void serve(Server& server, std::vector<std::byte>& memory) {
  server.handle(wire::METHOD_NOTIFY, [](Request& request) -> Task<Reply> {
    wire::NotifyRequest note;
    if (Status status = request.parse(note); !status.ok()) co_return Reply(status);
    co_return Reply(note);
  });
  server.handle(wire::METHOD_WRITE, [&memory](Request& request) -> Task<Reply> {
    const std::vector<MutableBytes> pieces{MutableBytes(memory)};
    Status status = co_await request.receive(pieces);
    if (!status.ok()) co_return Reply(status);
    co_return Reply(wire::WriteReply());
  });
  server.handle(wire::METHOD_READ, [&memory](Request&) -> Task<Reply> {
    Reply reply{wire::ReadReply()};
    reply.payload = {ConstBytes(memory)};
    co_return reply;
  });
}

void small_call(Lane& lane, const wire::NotifyRequest& request) {
  wire::NotifyRequest reply;
  must(lane.call(wire::METHOD_NOTIFY, request, reply, soon()));
}

void write_call(Lane& lane, const std::vector<std::byte>& data) {
  must(lane.send_request(wire::METHOD_WRITE, wire::WriteRequest(), data.size(), soon()));
  const ConstBytes pieces[] = {data};
  must(lane.send_payload(pieces, soon()));
  wire::WriteReply reply;
  must(lane.receive_reply(reply, soon()).status());
}

void read_call(Lane& lane, std::vector<std::byte>& data) {
  must(lane.send_request(wire::METHOD_READ, wire::ReadRequest(), 0, soon()));
  wire::ReadReply reply;
  must(lane.receive_reply(reply, soon()).status());
  const MutableBytes pieces[] = {data};
  must(lane.receive_payload(pieces, soon()));
}

void print_json(const char* shape, const char* operation, const char* side, const char* unit, double rate, const Times& times) {
  std::printf(
      "{\"shape\": \"%s\", \"operation\": \"%s\", \"side\": \"%s\", \"unit\": \"%s\", \"rate\": %.6g, \"p50_us\": %.2f, \"p99_us\": "
      "%.2f}\n",
      shape, operation, side, unit, rate, times.median_us, times.p99_us);
}

double gigabytes(const Times& times) { return times.per_second * static_cast<double>(kLarge) / 1e9; }

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2.0;
  const Identity self{.node_id = NodeId::generate(), .token = {}};
  std::vector<std::byte> memory(kLarge, std::byte{2});
  std::vector<std::byte> data(kLarge, std::byte{3});
  Server server(self, {});
  serve(server, memory);
  must(server.start());
  auto lane = Lane::connect({"127.0.0.1", server.port()}, self, soon());
  must(lane.status());
  wire::NotifyRequest note;
  note.set_text(std::string(kSmall, 'x'));

  // In turns, so that what else the machine does meets both alike; of each the best turn counts.
  constexpr int kTurns = 4;
  const double slice = seconds / kTurns;
  Times plain_small{}, wire_small{}, plain_write{}, wire_write{}, plain_read{}, wire_read{};
  const auto keep_best = [](Times& best, const Times& turn) {
    if (turn.per_second > best.per_second) best = turn;
  };
  for (int turn = 0; turn < kTurns; ++turn) {
    keep_best(plain_small, plain(slice, kSmall, kSmall));
    keep_best(wire_small, measure(slice, [&] { small_call(**lane, note); }));
    keep_best(plain_write, plain(slice, kLarge, 1));
    keep_best(wire_write, measure(slice, [&] { write_call(**lane, data); }));
    keep_best(plain_read, plain(slice, 1, kLarge));
    keep_best(wire_read, measure(slice, [&] { read_call(**lane, data); }));
  }
  if (argc > 2 && std::string_view(argv[2]) == "--json") {
    print_json("1 KiB", "round trip", "plain socket", "round trips/s", plain_small.per_second, plain_small);
    print_json("1 KiB", "round trip", "wire", "round trips/s", wire_small.per_second, wire_small);
    print_json("16 MiB", "write", "plain socket", "GB/s", gigabytes(plain_write), plain_write);
    print_json("16 MiB", "write", "wire", "GB/s", gigabytes(wire_write), wire_write);
    print_json("16 MiB", "read", "plain socket", "GB/s", gigabytes(plain_read), plain_read);
    print_json("16 MiB", "read", "wire", "GB/s", gigabytes(wire_read), wire_read);
    return 0;
  }
  std::printf("round trip of 1 KiB    plain p50 %.1f us, p99 %.1f us    wire p50 %.1f us, p99 %.1f us, %.0f/s\n", plain_small.median_us,
              plain_small.p99_us, wire_small.median_us, wire_small.p99_us, wire_small.per_second);
  std::printf("write of 16 MiB        plain %.2f GB/s    wire %.2f GB/s    ratio %.2f\n", gigabytes(plain_write), gigabytes(wire_write),
              gigabytes(wire_write) / gigabytes(plain_write));
  std::printf("read of 16 MiB         plain %.2f GB/s    wire %.2f GB/s    ratio %.2f\n", gigabytes(plain_read), gigabytes(wire_read),
              gigabytes(wire_read) / gigabytes(plain_read));
  return 0;
}
