#include "metadata/redis_store.h"

#include "metadata/redis_connection.h"

namespace moonpool::metadata {

namespace {

std::string_view first_word(std::string_view text) { return text.substr(0, text.find(' ')); }

// What to do about an error that Redis answered with.
std::string advice_for(std::string_view error) {
  const auto word = first_word(error);
  if (word == "NOAUTH") return "it wants a password: write redis://:password@host:port";
  if (word == "NOPERM") return "the user may not do this: change its ACL, or use another user";
  if (word == "LOADING") return "it is still reading its data set: try again soon";
  if (word == "READONLY") return "it is a read-only replica: name the primary instead";
  if (word == "OOM") return "its maxmemory is used up: raise it or remove keys";
  if (word == "WRONGTYPE") return "another program uses this key: choose another database (/db in the URL)";
  return "see the server's log";
}

}  // namespace

struct RedisStore::Reply : RedisReply {
  explicit Reply(RedisReply reply) : RedisReply(std::move(reply)) {}
};

RedisStore::RedisStore(MetadataUrl url, const MetadataStoreOptions& options)
    : url_(std::move(url)), max_idle_connections_(options.max_idle_connections) {}
RedisStore::~RedisStore() = default;

Result<std::unique_ptr<RedisConnection>> RedisStore::connect(Deadline deadline) const {
  auto connection = RedisConnection::connect(url_.endpoints.front(), deadline);
  if (!connection) return connection;
  if (!url_.password.empty()) {
    std::vector<std::string_view> login{"AUTH"};
    if (!url_.user.empty()) login.emplace_back(url_.user);
    login.emplace_back(url_.password);
    const auto reply = (*connection)->call(login, deadline);
    if (!reply) return reply.status();
    if (reply->kind == RedisReply::Kind::kError) {
      // Only its first word is shown: some servers quote the command, and with it the password.
      const bool loading = first_word(reply->text) == "LOADING";
      return Status(
          ErrorCode::kMetadataFail,
          "it refused the login (" + std::string(first_word(reply->text)) +
              "): " + (loading ? advice_for(reply->text) : "check user and password in the URL, and that the server has them configured"));
    }
  }
  if (url_.database != 0) {
    const auto reply = (*connection)->call({"SELECT", std::to_string(url_.database)}, deadline);
    if (!reply) return reply.status();
    if (reply->kind == RedisReply::Kind::kError) {
      const auto word = first_word(reply->text);
      return Status(ErrorCode::kMetadataFail,
                    "it refused database " + std::to_string(url_.database) + " (" + reply->text +
                        "): " + (word == "ERR" ? "choose another number after the '/' in the URL" : advice_for(reply->text)));
    }
  }
  return connection;
}

Result<RedisStore::Reply> RedisStore::call(const std::vector<std::string_view>& command, Deadline deadline) {
  for (;;) {
    auto connection = take_idle();
    const bool reused = connection != nullptr;
    if (!reused) {
      auto fresh = connect(deadline);
      if (!fresh) return fresh.status();
      connection = std::move(*fresh);
    }
    auto reply = connection->call(command, deadline);
    if (reply) {
      give_back(std::move(connection));
      if (reply->kind == RedisReply::Kind::kError) {
        return Status(ErrorCode::kMetadataFail, "it answered '" + shown_key(reply->text) + "': " + advice_for(reply->text));
      }
      return Reply(std::move(*reply));
    }
    const bool closed_while_idle = reused && reply.code() == ErrorCode::kUnavailable && connection->heard_nothing();
    if (!closed_while_idle) return reply.status();
  }
}

std::unique_ptr<RedisConnection> RedisStore::take_idle() {
  const std::lock_guard lock(mutex_);
  while (!idle_.empty()) {
    auto connection = std::move(idle_.back());
    idle_.pop_back();
    if (connection->quiet()) return connection;
  }
  return nullptr;
}

void RedisStore::give_back(std::unique_ptr<RedisConnection> connection) {
  const std::lock_guard lock(mutex_);
  if (idle_.size() < max_idle_connections_) idle_.push_back(std::move(connection));
}

Result<std::string> RedisStore::get(std::string_view key, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  const auto start = Deadline::Clock::now();
  auto reply = call({"GET", key}, deadline);
  if (!reply) return metadata_error(*this, "get", key, start, reply.status().message());
  if (reply->kind == RedisReply::Kind::kText) return std::move(reply->text);
  return key_not_found(*this, key);
}

Status RedisStore::put(std::string_view key, std::string_view value, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key_and_value(key, value));
  const auto start = Deadline::Clock::now();
  const auto reply = call({"SET", key, value}, deadline);
  return reply ? Status() : metadata_error(*this, "put", key, start, reply.status().message());
}

Status RedisStore::remove(std::string_view key, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  const auto start = Deadline::Clock::now();
  const auto reply = call({"DEL", key}, deadline);
  if (!reply) return metadata_error(*this, "remove", key, start, reply.status().message());
  return reply->number > 0 ? Status() : key_not_found(*this, key);
}

}  // namespace moonpool::metadata
