// An instance for the tests: speaks enough of OpenAI's HTTP to be one, at the speed and with the failure that it is told.
//
// Its model is greedy and says one text, Behaviour::tokens: asked with a prompt, or a last message to be continued, that ends with the
// beginning of that text, it goes on behind it, and it stops after max_tokens. So a stream that was continued well reads as if nothing had
// happened. Events have vLLM's shape, with token ids and usage where the request asks for them.
//
// Real sockets, one thread a connection, blocking calls: nothing here shares code with what it tests. Requests are kept as received. A
// stream can be held token by token, so that a test decides what has been sent at which moment.
// Threads: all public functions from any. Ownership: the test's; destruction ends every connection and thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace moonpool::gateway::testing {

enum class Fault {
  kNone,
  kStatus,           // answers with Behaviour::status and an OpenAI error
  kCloseBeforeHead,  // takes the request, closes
  kCloseInHead,      // sends half of its head
  kCloseInBody,      // half of a body of declared length; of a stream: the head and nothing else
  kCloseInStream,    // some tokens, then the connection closes
  kCloseInEvent,     // the same, in the middle of an event
  kEndWithoutDone,   // the stream ends as it should in HTTP, but without [DONE]
  kStallBeforeHead,  // takes the request, says nothing
  kStallInStream,    // some tokens, then silence
  kGarbage,          // answers what is not HTTP
  kUntilCloseCut,    // a JSON answer delimited by the connection's end, which comes early
};

// Where in an answer something goes wrong, and how: finer than Fault, and any pair makes sense.
enum class Point {
  kNowhere,
  kAccepted,         // the connection is there, nothing of the request was read
  kRequestRead,      // the request was read, nothing answered
  kInHead,           // half of the head was sent
  kHeadSent,         // the head was sent, nothing of the body
  kBetweenTokens,    // a stream: tokens_before_fault tokens were sent
  kInToken,          // and half of the next event
  kBeforeFinish,     // all tokens were sent, [DONE] was not
  kBeforeLastChunk,  // [DONE] was sent, the chunk that ends the body was not
  kInBody,           // a plain answer: half of its body was sent
  kByte,             // Behaviour::byte bytes of the answer were sent, head included
};
enum class How { kClose, kReset, kStall, kMalformed };

struct Behaviour {
  Fault fault = Fault::kNone;
  Point point = Point::kNowhere;
  How how = How::kClose;
  std::size_t byte = 0;
  double prefill_tokens_per_s = 0;  // 0: at once; a prompt has a token per four bytes of the request
  double decode_tokens_per_s = 0;   // 0: at once
  bool error_event = false;         // at the fault, a stream ends as vLLM's does whose engine died: an error event and [DONE]
  unsigned status = 500;
  std::vector<std::string> tokens = {"Once", " upon", " a", " time"};
  std::size_t tokens_before_fault = 2;
  std::string extra_fields;  // lines of the answer's head
  // Of a plain answer:
  std::string finish_reason;       // empty: "length" or "stop", as it is
  std::string kv_transfer_params;  // JSON; empty: null
};

struct SeenRequest {
  std::string method;
  std::string target;
  std::map<std::string, std::string> fields;  // names in lower case
  std::string body;
  int connection = 0;  // counts up with each accepted one
};

struct Piece;  // simulated_answer.h

class UpstreamSimulator {
 public:
  explicit UpstreamSimulator(std::string model = "m", std::string host = "127.0.0.1");
  ~UpstreamSimulator();
  UpstreamSimulator(const UpstreamSimulator&) = delete;
  UpstreamSimulator& operator=(const UpstreamSimulator&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] std::string name() const;  // host:port, with brackets for IPv6

  void set(Behaviour behaviour);                               // of all completions from now on
  void set_next(Behaviour behaviour);                          // of the next completion alone
  void set_health_status(unsigned status);                     // of GET /health
  void set_page(const std::string& target, std::string body);  // of GET on that target
  void hold_tokens();                                          // streams stop before each token until release_tokens()
  void release_tokens(int count);
  void close_idle_connections();  // as a server's keep-alive time-out does
  void stop();                    // as kill -9: the port refuses, connections are gone
  void start();                   // again on the same port

  [[nodiscard]] std::vector<SeenRequest> completions() const;
  [[nodiscard]] std::vector<SeenRequest> all() const;
  [[nodiscard]] int abandoned() const { return abandoned_; }  // completions whose client closed before they were answered
  [[nodiscard]] std::chrono::steady_clock::time_point last_abandoned() const { return last_abandoned_.load(); }
  [[nodiscard]] int stalled() const { return stalled_; }          // connections that went silent, ever
  [[nodiscard]] int connections() const { return connections_; }  // accepted so far

 private:
  void accept_loop(int listener);
  void serve(int socket, int number);
  [[nodiscard]] bool read_request(int socket, std::string& received, SeenRequest& request);
  // False when the connection ends.
  [[nodiscard]] bool answer(int socket, const SeenRequest& request);
  [[nodiscard]] bool answer_completion(int socket, const SeenRequest& request);
  // False when the connection ends. The tokens of a stream are held and paced one by one.
  [[nodiscard]] bool send_pieces(int socket, const std::vector<Piece>& pieces, const Behaviour& now);
  void go_wrong(int socket, How how, bool in_head, bool chunked);
  void stall(int socket);
  void abandoned_now();
  [[nodiscard]] bool pace(int socket, double seconds);  // false when the client left meanwhile
  [[nodiscard]] bool wait_for_token(int socket);
  [[nodiscard]] Behaviour behaviour();  // takes a next one
  [[nodiscard]] Behaviour peek();

  const std::string model_;
  const std::string host_;
  std::uint16_t port_ = 0;
  std::atomic<int> abandoned_{0};
  std::atomic<std::chrono::steady_clock::time_point> last_abandoned_{};
  std::atomic<int> stalled_{0};
  std::atomic<int> connections_{0};
  std::atomic<bool> stopping_{false};
  int listener_ = -1;
  std::thread acceptor_;
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  Behaviour behaviour_;
  std::optional<Behaviour> next_;
  unsigned health_status_ = 200;
  std::map<std::string, std::string> pages_;
  bool holding_ = false;
  int tokens_released_ = 0;
  std::set<int> sockets_;
  std::set<int> idle_;
  std::vector<std::thread> threads_;
  std::vector<SeenRequest> seen_;
};

}  // namespace moonpool::gateway::testing
