// Sends the spans of sampled requests to an OTLP/HTTP collector (POST /v1/traces, JSON).
//
// Never in a request's way: add() puts them into a bounded buffer under a short lock, and a thread of the exporter's own sends them, a
// batch each second or when 512 are there. A batch has ten seconds; one that the collector puts off (429, 502, 503, 504) is sent once more
// after its Retry-After; what is not taken then, and what finds the buffer full, is dropped and counted.
// Threads: add() from any; the rest from the gateway's. Ownership: the gateway's; outlives its workers' requests. `counters`, `resolver`
// and `tls` (its upstream side) outlive stop().
#pragma once

#include <chrono>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "gateway/cancellation.h"
#include "gateway/gateway_state.h"
#include "gateway/http_endpoint.h"
#include "gateway/resolver.h"
#include "gateway/spans.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

class OtlpExporter {
 public:
  static constexpr std::size_t kBufferedAtMost = 8192;
  static constexpr std::size_t kBatch = 512;

  OtlpExporter(HttpEndpoint collector, std::string service_name, Counters& counters, Resolver& resolver, const TlsKeeper& tls);
  ~OtlpExporter();  // stop()
  OtlpExporter(const OtlpExporter&) = delete;
  OtlpExporter& operator=(const OtlpExporter&) = delete;

  void add(std::vector<Span> spans);
  // Sends what is left, for two seconds at most, and ends.
  void stop();

 private:
  [[nodiscard]] Task<void> run();
  [[nodiscard]] std::vector<Span> take_batch();
  [[nodiscard]] Task<void> send(std::vector<Span> spans);
  // How many spans were not taken, or how long to wait before the same is sent again.
  struct Outcome {
    std::size_t refused = 0;
    std::optional<std::chrono::seconds> retry_after;
    std::string error;
  };
  [[nodiscard]] Task<Outcome> post(std::string_view body, std::size_t spans);

  const HttpEndpoint collector_;
  const std::string service_name_;
  Counters& counters_;
  Cancellation never_;  // before the context: what it abandons leaves here
  asio::io_context context_{1};
  UpstreamPool pool_;
  Timer timer_;             // between two batches, and before a retry
  std::string last_error_;  // logged once
  std::mutex mutex_;        // guards the two below
  std::deque<Span> waiting_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace moonpool::gateway
