// An instance that answers with the bytes that it is told and keeps the bytes that it got: for what a well-behaved one never does.
//
// Reads requests as HTTP says, a head and as much body as its Content-Length announces, so that anything smuggled behind one shows up as
// another. Health checks are answered by themselves and not kept. Blocking calls, one thread a connection.
// Threads: all public functions from any. Ownership: the test's; destruction ends every connection and thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace moonpool::gateway::testing {

class RawUpstream {
 public:
  struct Received {
    int connection = 0;  // counts up with each accepted one
    std::string bytes;   // head and body
  };

  RawUpstream();
  ~RawUpstream();
  RawUpstream(const RawUpstream&) = delete;
  RawUpstream& operator=(const RawUpstream&) = delete;

  [[nodiscard]] std::string name() const { return "127.0.0.1:" + std::to_string(port_); }
  void answer_with(std::string bytes);             // every request from now on
  void send_to_all(std::string_view bytes) const;  // over every connection that is open, asked or not; returns when it is there

  [[nodiscard]] std::vector<Received> requests() const;
  [[nodiscard]] int health_checks() const { return health_checks_; }

 private:
  void accept_loop();
  void serve(int socket, int number);

  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::atomic<int> health_checks_{0};
  std::thread acceptor_;
  mutable std::mutex mutex_;  // guards all below
  std::string answer_;
  std::set<int> sockets_;
  std::vector<Received> requests_;
  std::vector<std::thread> threads_;
};

// A whole JSON answer.
[[nodiscard]] std::string json_answer(std::string_view body, std::string_view fields = {});
// Whether these are exactly one request, with one framing, as the strictest parser would have it; `why_not` says otherwise.
[[nodiscard]] bool is_one_request(std::string_view bytes, std::string_view body, std::string& why_not);

}  // namespace moonpool::gateway::testing
