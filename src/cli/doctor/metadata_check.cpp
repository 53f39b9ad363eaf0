#include "cli/doctor/metadata_check.h"

#include <fmt/format.h>

#include <chrono>

#include "base/ids.h"
#include "metadata/open_metadata_store.h"

namespace moonpool::cli::doctor {

namespace {

using Clock = Deadline::Clock;

double milliseconds_since(Clock::time_point start) { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); }

constexpr const char* kReachRemedy = "start the server, and check its address, the firewall, and that it listens on more than 127.0.0.1";

// Of several endpoints each has to answer; one that does not is only noticed when it is needed.
Findings check_endpoints(const metadata::MetadataUrl& url, Deadline deadline) {
  Findings found;
  if (url.endpoints.size() < 2) return found;
  for (std::size_t i = 0; i < url.endpoints.size(); ++i) {
    metadata::MetadataUrl one = url;
    one.endpoints = {url.endpoints[i]};
    const auto store = metadata::open_metadata_store(one);
    const Deadline bound = deadline.sooner(deadline.left() / static_cast<std::int64_t>(url.endpoints.size() - i + 1));
    const Status status = store ? metadata::check_reachable(**store, bound) : store.status();
    if (!status.ok()) found.push_back(warning(status.message(), std::string(kReachRemedy) + "; the others do its work meanwhile"));
  }
  return found;
}

Finding probe(metadata::MetadataStore& store, Deadline deadline) {
  const std::string key = "moonpool/doctor/" + NodeId::generate().to_string();
  const std::string value = "written by moonpool doctor; may be removed";
  auto start = Clock::now();
  const Status reachable = metadata::check_reachable(store, deadline);
  if (!reachable.ok()) return error(reachable.message(), kReachRemedy);
  const double round_trip = milliseconds_since(start);
  // Half of the time that is left, so that there is some for cleaning up.
  const Deadline early = deadline.sooner(deadline.left() / 2);
  start = Clock::now();
  const Status written = store.put(key, value, early);
  const double write_time = milliseconds_since(start);
  start = Clock::now();
  const auto got = written.ok() ? store.get(key, early) : Result<std::string>(written);
  const double read_time = milliseconds_since(start);
  // After an error it is not known whether the key is there.
  start = Clock::now();
  const Status removed = store.remove(key, deadline);
  const double remove_time = milliseconds_since(start);
  if (!written.ok()) return error(written.message(), "give this user the right to write there (nodes publish themselves under moonpool/)");
  if (!got) return error(got.status().message(), "give this user the right to read there");
  if (*got != value) {
    return error(fmt::format("{}: a key was read back with another value than was written", store.describe()),
                 "is there a cache or a second, separate server behind this address?");
  }
  if (!removed.ok()) return error(removed.message(), "give this user the right to remove its own keys");
  return ok(fmt::format("{}: round trip {:.2f} ms; a key was written ({:.2f} ms), read ({:.2f} ms) and removed ({:.2f} ms)",
                        store.describe(), round_trip, write_time, read_time, remove_time));
}

}  // namespace

Findings check_metadata_server(const std::string& url, Deadline deadline) {
  const auto parsed = metadata::parse_metadata_url(url);
  if (!parsed) return {error(parsed.status().message(), "mend metadata_server in the configuration")};
  if (parsed->kind == metadata::MetadataKind::kPeerToPeer) return {ok("none is used (P2PHANDSHAKE): peers ask each other")};
  const auto store = metadata::open_metadata_store(*parsed);
  if (!store) return {error(store.status().message(), "mend metadata_server in the configuration")};
  Findings found = check_endpoints(*parsed, deadline.sooner(deadline.left() / 2));
  found.insert(found.begin(), probe(**store, deadline));
  return found;
}

}  // namespace moonpool::cli::doctor
