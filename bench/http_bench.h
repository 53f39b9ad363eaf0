// What the gateway's static upstream and its load generator share: clocks, waiting, sockets and the framing of HTTP/1.1 messages. One
// thread, epoll, no allocation once buffers have grown: both must cost much less than the proxies between them.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace moonpool::bench {

using Nanoseconds = std::int64_t;
constexpr Nanoseconds kSecond = 1'000'000'000;
// A token's text is the time at which it was sent: CLOCK_MONOTONIC in nanoseconds, in as many digits as this.
constexpr std::size_t kStampDigits = 19;

inline Nanoseconds now() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return Nanoseconds{time.tv_sec} * kSecond + time.tv_nsec;
}

[[noreturn]] inline void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

// Timers to the microsecond, and as many open files as may be had.
inline void prepare_process() {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::prctl(PR_SET_TIMERSLACK, 1);
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
}

inline sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

inline void set_no_delay(int socket) {
  const int on = 1;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

class Epoll {
 public:
  void add(int file, std::uint32_t tag) const { control(EPOLL_CTL_ADD, file, EPOLLIN, tag); }
  void change(int file, std::uint32_t events, std::uint32_t tag) const { control(EPOLL_CTL_MOD, file, events, tag); }
  // Waits until something is ready or `until` has come, for a second at most.
  [[nodiscard]] std::span<const epoll_event> wait(Nanoseconds until) {
    const Nanoseconds left = std::clamp<Nanoseconds>(until - now(), 0, kSecond - 1);
    const timespec time{0, left};
    const int count = ::epoll_pwait2(file_, events_, kEvents, &time, nullptr);
    return {events_, static_cast<std::size_t>(std::max(count, 0))};
  }

 private:
  static constexpr int kEvents = 256;
  void control(int operation, int file, std::uint32_t events, std::uint32_t tag) const {
    epoll_event event{};
    event.events = events;
    event.data.u32 = tag;
    if (::epoll_ctl(file_, operation, file, &event) != 0) fail("epoll_ctl");
  }
  int file_ = ::epoll_create1(EPOLL_CLOEXEC);
  epoll_event events_[kEvents];
};

// The value of a field in a message's head; `name` in lower case with its colon. Empty when it is not there.
inline std::string_view field(std::string_view head, std::string_view name) {
  for (std::size_t end = head.find("\r\n"); end != std::string_view::npos; end = head.find("\r\n")) {
    head.remove_prefix(end + 2);
    if (head.size() < name.size()) break;
    const bool same = std::equal(name.begin(), name.end(), head.begin(),
                                 [](char wanted, char is) { return wanted == (is >= 'A' && is <= 'Z' ? static_cast<char>(is + 32) : is); });
    if (!same) continue;
    std::string_view value = head.substr(name.size(), head.find("\r\n") - name.size());
    while (value.starts_with(' ')) value.remove_prefix(1);
    return value;
  }
  return {};
}

inline std::optional<std::size_t> number(std::string_view text, int base = 10) {
  std::size_t value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (read.ec != std::errc{}) return std::nullopt;
  return value;
}

// Takes an answer apart as its bytes come: a length or chunks, nothing else.
class AnswerReader {
 public:
  // Calls `on_body` with each piece of the body. False when this is no HTTP that is known here.
  template <typename OnBody>
  [[nodiscard]] bool feed(std::string_view bytes, OnBody&& on_body) {
    while (!bytes.empty()) {
      if (state_ == State::kDone) return false;  // more than was asked for
      if (state_ == State::kBody || state_ == State::kChunk) {
        const std::string_view piece = bytes.substr(0, left_);
        on_body(piece);
        bytes.remove_prefix(piece.size());
        left_ -= piece.size();
        if (left_ == 0) state_ = state_ == State::kBody ? State::kDone : State::kChunkEnd;
        continue;
      }
      const char* const end = state_ == State::kHead ? "\r\n\r\n" : "\r\n";
      if (!take_until(bytes, end)) return text_.size() < 65536;
      if (!advance()) return false;
      text_.clear();
    }
    return true;
  }
  [[nodiscard]] bool done() const { return state_ == State::kDone; }
  [[nodiscard]] bool begun() const { return state_ != State::kHead || !text_.empty(); }
  [[nodiscard]] std::size_t status() const { return status_; }
  void reset() {
    state_ = State::kHead;
    status_ = 0;
    text_.clear();
  }

 private:
  enum class State : std::uint8_t { kHead, kBody, kChunkSize, kChunk, kChunkEnd, kTrailer, kDone };
  // Moves bytes into text_ up to and including `end`.
  bool take_until(std::string_view& bytes, std::string_view end) {
    const std::size_t before = text_.size();
    text_.append(bytes);
    const std::size_t at = text_.find(end, before < end.size() ? 0 : before - end.size() + 1);
    if (at == std::string::npos) {
      bytes = {};
      return false;
    }
    text_.resize(at + end.size());
    bytes.remove_prefix(text_.size() - before);
    return true;
  }
  bool advance() {
    switch (state_) {
      case State::kHead: {
        const auto status = text_.starts_with("HTTP/1.1 ") ? number(std::string_view(text_).substr(9, 3)) : std::nullopt;
        if (!status) return false;
        status_ = *status;
        if (const auto length = number(field(text_, "content-length:")); length) {
          left_ = *length;
          state_ = left_ == 0 ? State::kDone : State::kBody;
          return true;
        }
        state_ = State::kChunkSize;
        return field(text_, "transfer-encoding:") == "chunked";
      }
      case State::kChunkSize: {
        const auto size = number(text_, 16);
        if (!size) return false;
        left_ = *size;
        state_ = left_ == 0 ? State::kTrailer : State::kChunk;
        return true;
      }
      case State::kChunkEnd:
        state_ = State::kChunkSize;
        return text_ == "\r\n";
      case State::kTrailer:
        if (text_ == "\r\n") state_ = State::kDone;
        return true;
      default:
        return false;
    }
  }
  State state_ = State::kHead;
  std::size_t status_ = 0;
  std::size_t left_ = 0;
  std::string text_;
};

}  // namespace moonpool::bench
