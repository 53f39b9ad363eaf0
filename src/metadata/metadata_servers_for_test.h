// The real servers that the conformance suite runs on, each on free ports and in a temporary folder of its own.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "metadata/metadata_store.h"

namespace moonpool::metadata {

class ServerForTest {
 public:
  virtual ~ServerForTest() = default;
  // Starts it (again, on the same port) and returns when it answers.
  [[nodiscard]] virtual Status start() = 0;
  // kill -9, or the nearest to it.
  virtual void kill() = 0;
  [[nodiscard]] virtual std::unique_ptr<MetadataStore> open() = 0;
  // "127.0.0.1:port" as an error has to name it.
  [[nodiscard]] virtual std::string endpoint() const = 0;
};

// "http", "etcd", "etcd_second_of_two" (the first of its endpoints is dead), "redis", "redis_with_password" (and database 3).
[[nodiscard]] std::unique_ptr<ServerForTest> make_server_for_test(const std::string& kind);
// The URL of a server of that kind on 127.0.0.1:port.
[[nodiscard]] std::string url_for_test(const std::string& kind, std::uint16_t port);

inline constexpr const char* kPasswordForTest = "p@ss:w/rd%";

}  // namespace moonpool::metadata
