#include "transfer/shm/owner_server.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "base/deadline.h"
#include "base/logging.h"

namespace moonpool::transfer {

namespace {

// Readable when the process has ended. Empty when it cannot be watched (an old kernel, another process namespace).
net::UniqueFd watch_process(pid_t pid) {
#ifdef SYS_pidfd_open
  if (pid > 0) return net::UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
#endif
  return {};
}

bool add_to(int epoll, int fd, int connection) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = static_cast<std::uint64_t>(static_cast<std::uint32_t>(fd)) << 32 | static_cast<std::uint32_t>(connection);
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

// What the owner holds: the board and the sessions' rings.
class OwnerServer::Rings final : public RemoteWriters {
 public:
  explicit Rings(std::shared_ptr<Board> board) : board_(std::move(board)) {}

  void add(const std::shared_ptr<OwnerSession>& session) {
    const std::unique_lock lock(mutex_);
    sessions_.push_back(session);
  }
  void remove(const std::shared_ptr<OwnerSession>& session) {
    const std::unique_lock lock(mutex_);
    std::erase(sessions_, session);
  }
  [[nodiscard]] std::size_t size() const {
    const std::shared_lock lock(mutex_);
    return sessions_.size();
  }

  void announce_open(const Incarnation& incarnation) override { board_->open(incarnation); }
  void announce_closing(const Incarnation& incarnation) override { board_->close(incarnation); }
  void announce_term(Term term) override { board_->adopt(term); }
  void announce_oldest(Version oldest) override { board_->set_oldest(oldest); }
  void announce_retired(std::uint64_t offset, Version version) override { board_->retire(offset, version); }
  void harvest() override {
    const std::shared_lock lock(mutex_);
    for (const auto& session : sessions_) session->harvest();
  }

 private:
  const std::shared_ptr<Board> board_;
  mutable std::shared_mutex mutex_;  // guards sessions_; taken before a session's
  std::vector<std::shared_ptr<OwnerSession>> sessions_;
};

struct OwnerServer::Connection {
  net::UniqueFd fd;
  net::UniqueFd process;
  std::shared_ptr<OwnerSession> session;
  bool muted = false;
  Deadline handshake_by = Deadline::after(kHandshakeTimeout);
};

OwnerServer::OwnerServer(Owner& owner, const net::Identity& self) : owner_(owner), self_(self), buffer_(kMaxDatagram) {}

OwnerServer::~OwnerServer() { stop(); }

Status OwnerServer::start() {
  auto board = Board::create();
  if (!board.ok()) return board.status();
  auto listener = listen_on_name(socket_name(self_.node_id));
  if (!listener.ok()) return listener.status();
  board_ = std::move(*board);
  listener_ = std::move(*listener);
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !wake_ || !add_to(epoll_.get(), listener_.get(), -1) || !add_to(epoll_.get(), wake_.get(), -1)) {
    return {ErrorCode::kUnavailable, std::string("shared memory: no epoll: ") + std::strerror(errno)};
  }
  rings_ = std::make_shared<Rings>(board_);
  owner_.attach(rings_);
  thread_ = std::thread([this] { run(); });
  return {};
}

void OwnerServer::stop() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);  // an eventfd that is full wakes as well
  thread_.join();
  owner_.attach(nullptr);
  listener_.reset();
}

std::size_t OwnerServer::sessions() const { return rings_ == nullptr ? 0 : rings_->size(); }

void OwnerServer::run() {
  std::array<epoll_event, 64> events{};
  while (!stopping_) {
    const bool shaking = std::ranges::any_of(connections_, [](const auto& item) { return !item.second->session->known(); });
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), shaking ? 1000 : -1);
    for (int i = 0; i < count; ++i) {
      const int fd = static_cast<int>(events[static_cast<std::size_t>(i)].data.u64 >> 32);
      const int connection = static_cast<int>(static_cast<std::uint32_t>(events[static_cast<std::size_t>(i)].data.u64));
      if (fd == listener_.get()) accept_all();
      const auto found = connections_.find(connection);
      if (found == connections_.end()) continue;
      const bool process_ended = fd != connection;
      if (process_ended || !serve(*found->second)) drop(connection);
    }
    std::vector<int> late;
    for (const auto& [fd, connection] : connections_) {
      if (!connection->session->known() && connection->handshake_by.expired()) late.push_back(fd);
    }
    for (const int fd : late) drop(fd);
  }
  while (!connections_.empty()) drop(connections_.begin()->first);
}

void OwnerServer::accept_all() {
  for (;;) {
    net::UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) return;
    const auto peer = peer_of(fd.get());
    if (!peer.ok() || peer->uid != ::geteuid() || connections_.size() >= kMaxSessions) continue;
    auto connection = std::make_unique<Connection>();
    connection->process = watch_process(peer->pid);
    connection->session = std::make_shared<OwnerSession>(owner_, board_, self_);
    const int number = fd.get();
    connection->fd = std::move(fd);
    if (!add_to(epoll_.get(), number, number)) continue;
    if (connection->process && !add_to(epoll_.get(), connection->process.get(), number)) connection->process.reset();
    rings_->add(connection->session);
    connections_.emplace(number, std::move(connection));
  }
}

// A peer that speaks nonsense, or asks and does not read its answers, hears no more. But its process may be copying at this moment, so its
// session ends with it, or when it closes the connection, as any other does.
bool OwnerServer::serve(Connection& connection) {
  for (;;) {
    const auto datagram = receive_datagram(connection.fd.get(), buffer_);
    if (datagram.kind == Datagram::Kind::kNothingYet) return true;
    if (datagram.kind == Datagram::Kind::kEnd) return is_awaited(connection);
    if (connection.muted) continue;
    bool good = datagram.kind == Datagram::Kind::kData;
    if (good) {
      const auto answer = connection.session->on_frame(std::span(buffer_).first(datagram.size));
      good = answer.frame.empty() || send_datagram(connection.fd.get(), answer.frame, answer.descriptors) == SendOutcome::kSent;
      good = good && !answer.close;
    }
    if (good) continue;
    if (!connection.session->known()) return false;
    connection.muted = true;
    ::shutdown(connection.fd.get(), SHUT_WR);
  }
}

// Whether the connection has ended before its process has. Its end is heard of from the process then.
bool OwnerServer::is_awaited(Connection& connection) const {
  if (!connection.process || !connection.session->writing()) return false;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection.fd.get(), nullptr) == 0;
}

// The session is over before its connection is: a peer that sees the end knows that nothing of it is left here.
void OwnerServer::drop(int fd) {
  const auto found = connections_.find(fd);
  const auto connection = std::move(found->second);
  connections_.erase(found);
  connection->session->end();
  rings_->remove(connection->session);
}

}  // namespace moonpool::transfer
