// An HTTP server whose every answer a test writes itself, byte by byte: for collectors and API servers that answer slowly, badly or in
// pieces. One request a connection, blocking calls, a thread each; nothing here shares code with what it tests.
// Threads: the handler runs on the connection's. Ownership: the test's; destruction ends every connection.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace moonpool::gateway::testing {

struct StubRequest {
  std::string method;
  std::string target;
  std::map<std::string, std::string> fields;  // names in lower case
  std::string body;
};

class StubServer {
 public:
  // False once the peer is gone.
  using Send = std::function<bool(std::string_view)>;
  using Handler = std::function<void(const StubRequest&, const Send&)>;

  explicit StubServer(Handler handler, std::uint16_t port = 0);
  ~StubServer();
  StubServer(const StubServer&) = delete;
  StubServer& operator=(const StubServer&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }
  // Handlers that wait look at it.
  [[nodiscard]] bool stopping() const { return stopping_; }

  // A whole answer with its length.
  [[nodiscard]] static std::string answer(unsigned status, std::string_view body, std::string_view extra_fields = {});
  [[nodiscard]] static std::string chunk(std::string_view bytes);

 private:
  void accept_loop();
  void serve(int socket);

  const Handler handler_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread acceptor_;
  std::mutex mutex_;  // guards the two below
  std::set<int> sockets_;
  std::vector<std::thread> threads_;
};

}  // namespace moonpool::gateway::testing
