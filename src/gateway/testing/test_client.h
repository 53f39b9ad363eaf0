// A plain blocking HTTP/1.1 client for the tests. It reports how an answer ended, which a comfortable client would hide.
// Threads: one. Every read has a deadline of some seconds, after which the answer counts as incomplete.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace moonpool::gateway::testing {

struct ClientAnswer {
  unsigned status = 0;                        // 0: no answer at all
  std::map<std::string, std::string> fields;  // names in lower case
  std::string body;                           // out of its chunks
  bool complete = false;                      // ended as HTTP says: its length, or its last chunk
};

class TestClient {
 public:
  explicit TestClient(std::uint16_t port, const std::string& host = "127.0.0.1");
  ~TestClient();
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  [[nodiscard]] bool connected() const { return socket_ >= 0; }
  bool send(std::string_view bytes) const;
  // `fields` are whole lines.
  bool send_request(std::string_view method, std::string_view target, std::string_view body, std::string_view fields = {}) const;

  [[nodiscard]] ClientAnswer read_answer();
  ClientAnswer request(std::string_view method, std::string_view target, std::string_view body = {}, std::string_view fields = {});
  ClientAnswer post(std::string_view target, std::string_view body, std::string_view fields = {}) {
    return request("POST", target, body, fields);
  }
  ClientAnswer get(std::string_view target, std::string_view fields = {}) { return request("GET", target, {}, fields); }

  // Piecewise: the head, then one chunk at a time. nullopt: the last chunk; check ended_badly().
  [[nodiscard]] ClientAnswer read_head();
  [[nodiscard]] std::optional<std::string> read_chunk();
  [[nodiscard]] bool ended_badly() const { return ended_badly_; }
  // Whether an answer, or the end of the connection, comes within that time.
  [[nodiscard]] bool readable_within(int milliseconds) const;
  // Whether the other side closes (and sends nothing more) within a few seconds.
  [[nodiscard]] bool sees_close();
  void close();

 private:
  [[nodiscard]] bool more();
  [[nodiscard]] std::optional<std::string> take_line();

  int socket_ = -1;
  std::string received_;
  bool ended_badly_ = false;
};

}  // namespace moonpool::gateway::testing
