#include "metadata/redis_connection.h"

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>

#include "metadata/metadata_store.h"

namespace moonpool::metadata {

namespace {

constexpr std::size_t kMaxReplyBytes = kMaxValueBytes * 2;

Status broken(const boost::system::error_code& error) {
  if (error == boost::asio::error::timed_out) {
    return {ErrorCode::kRpcTimeout,
            "no whole answer before the deadline: the server is stopped, overloaded or unreachable; check it, or allow more time"};
  }
  return {ErrorCode::kUnavailable, "the connection broke (" + error.message() + "): check that the server still runs"};
}

RedisReply convert(const redisReply& reply) {
  switch (reply.type) {
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
      return {RedisReply::Kind::kText, std::string(reply.str, reply.len)};
    case REDIS_REPLY_ERROR:
      return {RedisReply::Kind::kError, std::string(reply.str, reply.len)};
    case REDIS_REPLY_INTEGER:
      return {RedisReply::Kind::kNumber, {}, reply.integer};
    default:
      return {};
  }
}

}  // namespace

Result<std::unique_ptr<RedisConnection>> RedisConnection::connect(const net::Endpoint& endpoint, Deadline deadline) {
  auto socket = net::DeadlineSocket::connect(endpoint, deadline);
  if (!socket) return socket.status();
  return std::unique_ptr<RedisConnection>(new RedisConnection(std::move(*socket)));
}

Result<RedisReply> RedisConnection::call(const std::vector<std::string_view>& command, Deadline deadline) {
  std::vector<const char*> words;
  std::vector<std::size_t> lengths;
  for (const auto word : command) {
    words.push_back(word.data());
    lengths.push_back(word.size());
  }
  char* formatted = nullptr;
  const auto length = redisFormatCommandArgv(&formatted, static_cast<int>(words.size()), words.data(), lengths.data());
  if (length < 0) return Status(ErrorCode::kInternal, "out of memory for a redis command");
  const std::unique_ptr<char, void (*)(void*)> owner(formatted, [](void* memory) { redisFreeCommand(static_cast<char*>(memory)); });
  received_ = 0;
  socket_.set_deadline(deadline);
  MOONPOOL_RETURN_IF_ERROR(send({formatted, static_cast<std::size_t>(length)}));
  return receive();
}

Status RedisConnection::send(std::string_view bytes) {
  while (!bytes.empty()) {
    boost::system::error_code error;
    bytes.remove_prefix(socket_.write_some(boost::asio::const_buffer(bytes.data(), bytes.size()), error));
    if (error) return broken(error);
  }
  return {};
}

Result<RedisReply> RedisConnection::receive() {
  std::array<char, 16384> part;
  for (;;) {
    void* parsed = nullptr;
    if (redisReaderGetReply(reader_.get(), &parsed) != REDIS_OK) {
      return Status(ErrorCode::kProtocol,
                    std::string("the answer is not Redis' protocol (") + reader_->errstr + "): check that Redis listens there");
    }
    if (parsed != nullptr) {
      const std::unique_ptr<redisReply, void (*)(void*)> reply(static_cast<redisReply*>(parsed), freeReplyObject);
      return convert(*reply);
    }
    if (received_ > kMaxReplyBytes)
      return Status(ErrorCode::kProtocol, "the answer is larger than any value that was put: check the database");
    boost::system::error_code error;
    const auto count = socket_.read_some(boost::asio::buffer(part), error);
    if (error) return broken(error);
    received_ += count;
    if (redisReaderFeed(reader_.get(), part.data(), count) != REDIS_OK) return Status(ErrorCode::kInternal, reader_->errstr);
  }
}

}  // namespace moonpool::metadata
