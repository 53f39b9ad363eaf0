// A connected TCP socket, used synchronously on the caller's thread with a real deadline: non-blocking descriptor plus poll(2).
//
// It satisfies Beast's SyncReadStream and SyncWriteStream, so Beast's parsers and serializers run over it without an io_context or a second
// thread; the deadline set last bounds every read and write until the next is set, and an expired one is boost::asio::error::timed_out.
// Cost: one poll beside each system call that has to wait, nothing otherwise. Threads: one at a time. Owns its descriptor.
#pragma once

#include <sys/uio.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/beast/core/buffer_traits.hpp>
#include <boost/system/system_error.hpp>
#include <cstddef>
#include <span>

#include "base/deadline.h"
#include "base/result.h"
#include "net/endpoint.h"

namespace moonpool::net {

class DeadlineSocket {
 public:
  // Resolves and connects; every address of the name is tried, each with its share of the time left. kUnavailable or kRpcTimeout; the text
  // starts with the endpoint and says what to do.
  [[nodiscard]] static Result<DeadlineSocket> connect(const Endpoint& endpoint, Deadline deadline);

  DeadlineSocket(DeadlineSocket&& other) noexcept;
  DeadlineSocket& operator=(DeadlineSocket&& other) noexcept;
  ~DeadlineSocket();

  void set_deadline(Deadline deadline) { deadline_ = deadline; }
  // False if the peer has closed it or sent something unasked, which is what an idle connection of a restarted server looks like.
  [[nodiscard]] bool quiet() const;

  template <typename Buffers>
  std::size_t read_some(const Buffers& buffers, boost::system::error_code& error) {
    return receive(boost::asio::mutable_buffer(*boost::asio::buffer_sequence_begin(buffers)), error);
  }
  template <typename Buffers>
  std::size_t write_some(const Buffers& buffers, boost::system::error_code& error) {
    std::array<iovec, 8> pieces{};
    std::size_t count = 0;
    for (auto it = boost::asio::buffer_sequence_begin(buffers); it != boost::asio::buffer_sequence_end(buffers) && count < 8; ++it) {
      const boost::asio::const_buffer piece(*it);
      if (piece.size() > 0) pieces[count++] = {const_cast<void*>(piece.data()), piece.size()};
    }
    return send(std::span(pieces).first(count), error);
  }
  // Beast's concepts ask for the throwing forms too; nothing here calls them.
  template <typename Buffers>
  std::size_t read_some(const Buffers& buffers);
  template <typename Buffers>
  std::size_t write_some(const Buffers& buffers);

 private:
  explicit DeadlineSocket(int fd) : fd_(fd) {}
  [[nodiscard]] static Result<DeadlineSocket> connect_to(const SocketAddress& address, Deadline deadline);
  std::size_t receive(boost::asio::mutable_buffer into, boost::system::error_code& error);
  std::size_t send(std::span<iovec> pieces, boost::system::error_code& error);

  int fd_ = -1;
  Deadline deadline_ = Deadline::at({});
};

}  // namespace moonpool::net
