// The load of the gateway's benchmark: chat completions over HTTP/1.1 to one port of this host, each answer checked to be whole. Prints one
// JSON line: rates, microseconds, errors and the CPU time that the generator itself took.
//
//   gateway_load closed  --port P --connections 32 --seconds 5          each connection sends again when it has its answer
//   gateway_load open    --port P --rate 1000 --seconds 5               sends by the clock whatever comes back (--poisson: irregularly);
//                                                                       times count from when a request was planned
//   gateway_load streams --port P --connections 10000 --ramp 10         opens them evenly, one stream each, and measures what every token
//                        --tokens 12 --interval-us 2000000              took from the upstream, in which its text is the time it was sent
//
// --stream (closed, open): streamed answers of --tokens tokens, --interval-us apart. --warm-up seconds are not counted.
#include <sys/prctl.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "http_bench.h"

namespace {

using namespace moonpool::bench;

struct Options {
  std::string mode;
  std::uint16_t port = 0;
  std::size_t connections = 32;
  double seconds = 5;
  double warm_up = 0.5;
  double rate = 1000;
  double ramp = 1;
  bool poisson = false;
  bool stream = false;
  std::size_t tokens = 16;
  std::size_t interval_us = 0;
  std::size_t prompt_bytes = 1024;
  double patience = 10;  // seconds that answers may still take at the end
};

struct Connection {
  int socket = -1;
  bool busy = false;
  Nanoseconds planned = 0;
  std::size_t tokens = 0;
  bool ended = false;  // [DONE], or the marker of a whole answer
  AnswerReader answer;
  std::string line;
};

double percentile(std::vector<std::uint32_t>& sorted_ns, double share) {
  if (sorted_ns.empty()) return 0;
  const auto index = static_cast<std::size_t>(share * static_cast<double>(sorted_ns.size()));
  return sorted_ns[std::min(index, sorted_ns.size() - 1)] / 1000.0;
}

std::uint32_t saturated(Nanoseconds time) { return static_cast<std::uint32_t>(std::clamp<Nanoseconds>(time, 0, UINT32_MAX)); }

class Load {
 public:
  explicit Load(Options options) : options_(std::move(options)) {
    const std::string prompt(options_.prompt_bytes, 'x');
    std::string body =
        R"({"model":"bench","messages":[{"role":"user","content":")" + prompt + R"("}],"max_tokens":)" + std::to_string(options_.tokens);
    if (options_.stream) body += R"(,"stream":true)";
    if (options_.interval_us > 0) body += R"(,"seed":)" + std::to_string(options_.interval_us);
    body += "}";
    request_ =
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: gateway_load\r\nAccept: */*\r\nContent-Type: "
        "application/json\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    connections_.resize(options_.connections);
  }

  void run() {
    start_ = now() + seconds(0.01);
    measured_from_ = start_ + seconds(options_.warm_up);
    end_ = measured_from_ + seconds(options_.seconds);
    if (options_.mode == "streams") measured_from_ = start_ + seconds(options_.ramp);
    next_ = start_;
    Nanoseconds last = end_ + seconds(options_.patience);
    if (options_.mode == "streams") {
      end_ = start_ + seconds(options_.ramp);
      last = end_ + static_cast<Nanoseconds>(options_.tokens * options_.interval_us) * 1000 + seconds(options_.patience);
    }
    if (options_.mode == "closed") {
      for (std::uint32_t index = 0; index < connections_.size(); ++index) send(index, now());
    } else {
      for (std::uint32_t index = 0; index < connections_.size(); ++index) idle_.push_back(index);
    }
    while (now() < last && (now() < end_ || busy_ > 0 || !late_.empty())) {
      if (options_.mode != "closed") send_planned();
      const bool sends = options_.mode != "closed" && next_ < end_;
      for (const epoll_event& event : epoll_.wait(sends ? next_ : now() < end_ ? end_ : last)) receive(event.data.u32);
    }
    unanswered_ = busy_ + late_.size();
  }

  void report() {
    std::sort(times_.begin(), times_.end());
    std::sort(token_times_.begin(), token_times_.end());
    rusage used{};
    ::getrusage(RUSAGE_SELF, &used);
    const auto micros = [](const timeval& time) { return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec); };
    const double cpu = micros(used.ru_utime) + micros(used.ru_stime);
    double mean = 0;
    for (const std::uint32_t time : times_) mean += time / 1000.0 / static_cast<double>(times_.size());
    std::printf(
        R"({"requests_per_s":%.1f,"mean_us":%.1f,"p50_us":%.1f,"p90_us":%.1f,"p99_us":%.1f,"p999_us":%.1f,"max_us":%.1f,"measured":%zu,)"
        R"("answers":%zu,"errors":%zu,"unanswered":%zu,"reconnects":%zu,"tokens":%zu,"token_p50_us":%.1f,"token_p90_us":%.1f,)"
        R"("token_p99_us":%.1f,"token_p999_us":%.1f,"token_max_us":%.1f,"most_open":%zu,"cpu_us":%.0f})"
        "\n",
        static_cast<double>(times_.size()) / options_.seconds, mean, percentile(times_, 0.5), percentile(times_, 0.9),
        percentile(times_, 0.99), percentile(times_, 0.999), percentile(times_, 1), times_.size(), answers_, errors_, unanswered_,
        reconnects_, token_times_.size(), percentile(token_times_, 0.5), percentile(token_times_, 0.9), percentile(token_times_, 0.99),
        percentile(token_times_, 0.999), percentile(token_times_, 1), most_busy_, cpu);
    if (!first_error_.empty()) std::fprintf(stderr, "the first error: %s\n", first_error_.c_str());
  }
  [[nodiscard]] bool clean() const { return errors_ == 0 && unanswered_ == 0 && answers_ > 0; }

 private:
  static Nanoseconds seconds(double time) { return static_cast<Nanoseconds>(time * static_cast<double>(kSecond)); }

  void send_planned() {
    while (next_ <= now() && next_ < end_) {
      late_.push_back(next_);
      if (options_.mode == "streams") {
        if (++planned_ >= connections_.size())
          next_ = end_;
        else
          next_ = start_ + seconds(options_.ramp * static_cast<double>(planned_) / static_cast<double>(connections_.size()));
      } else {
        const double gap = 1 / options_.rate;
        next_ += std::max<Nanoseconds>(1, seconds(options_.poisson ? gap * spread_(random_) : gap));
      }
    }
    while (!late_.empty() && !idle_.empty()) {
      const std::uint32_t index = idle_.front();
      idle_.pop_front();
      const Nanoseconds planned = late_.front();
      late_.pop_front();
      send(index, planned);
    }
  }

  void connect(std::uint32_t index) {
    Connection& connection = connections_[index];
    connection.socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection.socket < 0) fail("socket");
    const sockaddr_in address = loopback(options_.port);
    if (::connect(connection.socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fail("connect");
    set_no_delay(connection.socket);
    epoll_.add(connection.socket, index);
  }

  void send(std::uint32_t index, Nanoseconds planned) {
    Connection& connection = connections_[index];
    if (connection.socket < 0) connect(index);
    connection.busy = true;
    most_busy_ = std::max(most_busy_, ++busy_);
    connection.planned = planned;
    connection.tokens = 0;
    connection.ended = false;
    connection.answer.reset();
    connection.line.clear();
    // Blocking: a request is smaller than a socket's buffer.
    if (::send(connection.socket, request_.data(), request_.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request_.size()))
      wrong(index, "send");
  }

  void receive(std::uint32_t index) {
    Connection& connection = connections_[index];
    if (connection.socket < 0) return;
    const ssize_t count = ::recv(connection.socket, buffer_, sizeof buffer_, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    const Nanoseconds received = now();
    if (count <= 0) {
      if (connection.busy) return wrong(index, "the connection ended within an answer");
      ::close(connection.socket);  // an idle one, which a proxy may close; opened again when it is needed
      connection.socket = -1;
      ++reconnects_;
      return;
    }
    if (!connection.busy) return wrong(index, "bytes that nothing was asked for");
    const bool good = connection.answer.feed({buffer_, static_cast<std::size_t>(count)},
                                             [&](std::string_view piece) { take_body(connection, piece, received); });
    if (!good) return wrong(index, "not an answer that is understood");
    if (connection.answer.done()) finished(index, received);
  }

  void take_body(Connection& connection, std::string_view piece, Nanoseconds received) {
    connection.line += piece;
    if (!options_.stream) return;
    std::size_t begin = 0;
    for (std::size_t end = connection.line.find('\n'); end != std::string::npos; end = connection.line.find('\n', begin)) {
      take_line(connection, std::string_view(connection.line).substr(begin, end - begin), received);
      begin = end + 1;
    }
    connection.line.erase(0, begin);
  }

  void take_line(Connection& connection, std::string_view line, Nanoseconds received) {
    if (line == "data: [DONE]") connection.ended = true;
    constexpr std::string_view kText = R"("content":")";
    const std::size_t at = line.find(kText);
    if (at == std::string_view::npos) return;
    const auto stamp = number(line.substr(at + kText.size(), kStampDigits));
    if (!stamp) return;
    ++connection.tokens;
    const auto sent = static_cast<Nanoseconds>(*stamp);
    if (sent >= measured_from_) token_times_.push_back(saturated(received - sent));
  }

  void finished(std::uint32_t index, Nanoseconds received) {
    Connection& connection = connections_[index];
    if (connection.answer.status() != 200) return wrong(index, "not HTTP 200");
    if (options_.stream ? !connection.ended || connection.tokens != options_.tokens
                        : connection.line.find("whole answer") == std::string::npos) {
      return wrong(index, "an answer that is not whole");
    }
    ++answers_;
    const bool counted = options_.mode == "closed" ? received >= measured_from_ && received < end_ : connection.planned >= measured_from_;
    if (counted) times_.push_back(saturated(received - connection.planned));
    release(index);
  }

  void wrong(std::uint32_t index, const char* what) {
    Connection& connection = connections_[index];
    if (errors_++ == 0) {
      first_error_ = std::string(what) + ", status " + std::to_string(connection.answer.status()) + ", " +
                     std::to_string(connection.tokens) + " tokens, " + connection.line.substr(0, 300);
    }
    ::close(connection.socket);
    connection.socket = -1;
    if (errors_ > 1000) {
      report();
      std::exit(1);
    }
    if (connection.busy) release(index);
  }

  void release(std::uint32_t index) {
    connections_[index].busy = false;
    --busy_;
    if (options_.mode == "closed" && now() < end_) {
      send(index, now());
    } else if (options_.mode == "open") {
      idle_.push_back(index);
    }
  }

  Options options_;
  Epoll epoll_;
  std::string request_;
  std::vector<Connection> connections_;
  std::deque<std::uint32_t> idle_;
  std::deque<Nanoseconds> late_;  // planned and not sent yet
  std::vector<std::uint32_t> times_;
  std::vector<std::uint32_t> token_times_;
  std::mt19937_64 random_{42};
  std::exponential_distribution<double> spread_{1};
  Nanoseconds start_ = 0;
  Nanoseconds measured_from_ = 0;
  Nanoseconds end_ = 0;
  Nanoseconds next_ = 0;
  std::size_t planned_ = 0;
  std::size_t busy_ = 0;
  std::size_t most_busy_ = 0;
  std::size_t answers_ = 0;
  std::size_t errors_ = 0;
  std::size_t unanswered_ = 0;
  std::size_t reconnects_ = 0;
  std::string first_error_;
  char buffer_[65536];
};

Options parse(int argc, char** argv) {
  Options options;
  if (argc > 1) options.mode = argv[1];
  const auto usage = [] {
    std::fprintf(stderr, "usage: gateway_load closed|open|streams --port P [...]; see the top of gateway_load.cpp\n");
    std::exit(2);
  };
  for (int i = 2; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--poisson") {
      options.poisson = true;
    } else if (name == "--stream") {
      options.stream = true;
    } else if (i + 1 == argc) {
      usage();
    } else {
      const char* value = argv[++i];
      if (name == "--port")
        options.port = static_cast<std::uint16_t>(std::atoi(value));
      else if (name == "--connections")
        options.connections = static_cast<std::size_t>(std::atoll(value));
      else if (name == "--seconds")
        options.seconds = std::atof(value);
      else if (name == "--warm-up")
        options.warm_up = std::atof(value);
      else if (name == "--rate")
        options.rate = std::atof(value);
      else if (name == "--ramp")
        options.ramp = std::atof(value);
      else if (name == "--tokens")
        options.tokens = static_cast<std::size_t>(std::atoll(value));
      else if (name == "--interval-us")
        options.interval_us = static_cast<std::size_t>(std::atoll(value));
      else if (name == "--prompt-bytes")
        options.prompt_bytes = static_cast<std::size_t>(std::atoll(value));
      else if (name == "--patience")
        options.patience = std::atof(value);
      else
        usage();
    }
  }
  if (options.mode == "streams") options.stream = true;
  if ((options.mode != "closed" && options.mode != "open" && options.mode != "streams") || options.port == 0) usage();
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  prepare_process();
  auto load = std::make_unique<Load>(parse(argc, argv));
  load->run();
  load->report();
  return load->clean() ? 0 : 1;
}
