// One connection to a Redis server: a command, its reply, under a deadline.
//
// Bytes from the server are parsed by hiredis' reader, bounded by kMaxReplyBytes. After an error other than the server's own "-ERR ..."
// reply the connection is to be dropped: its position in the stream is unknown. Threads: one at a time.
#pragma once

#include <hiredis/hiredis.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "net/deadline_socket.h"

namespace moonpool::metadata {

struct RedisReply {
  enum class Kind { kText, kNothing, kNumber, kError };
  Kind kind = Kind::kNothing;
  std::string text;  // of a string, a status or an error
  long long number = 0;
};

class RedisConnection {
 public:
  [[nodiscard]] static Result<std::unique_ptr<RedisConnection>> connect(const net::Endpoint& endpoint, Deadline deadline);

  // kRpcTimeout, kProtocol, or kUnavailable when the connection ended. An error reply is a reply.
  [[nodiscard]] Result<RedisReply> call(const std::vector<std::string_view>& command, Deadline deadline);
  // Whether it may be used for another command (checked without blocking).
  [[nodiscard]] bool quiet() const { return socket_.quiet(); }
  // No byte of an answer to the last command has arrived.
  [[nodiscard]] bool heard_nothing() const { return received_ == 0; }

 private:
  struct FreeReader {
    void operator()(redisReader* reader) const { redisReaderFree(reader); }
  };
  explicit RedisConnection(net::DeadlineSocket socket) : socket_(std::move(socket)), reader_(redisReaderCreate()) {}
  [[nodiscard]] Status send(std::string_view bytes);
  [[nodiscard]] Result<RedisReply> receive();

  net::DeadlineSocket socket_;
  std::unique_ptr<redisReader, FreeReader> reader_;
  std::size_t received_ = 0;  // bytes since the last command was sent
};

}  // namespace moonpool::metadata
