// The story of one request: when each stage was reached, who worked on it, how it ended. The access log and the counters read it.
#pragma once

#include <chrono>
#include <string>

#include "gateway/trace_context.h"

namespace moonpool::gateway {

struct RequestRecord {
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;

  std::string id;      // the client's X-Request-Id, or one of ours
  TraceContext trace;  // the client's, or one that starts here
  std::string method;
  std::string path;              // without its query, which is never logged
  std::string prefill;           // the instance that did it, empty when none did
  std::string decode;            // the instance whose answer the client got
  Time received = Clock::now();  // the whole request is here
  Time hops_started{};           // the first hop begins: what lies before is the gateway's own
  Time prefill_done{};           // the prefill hop ended, well or not
  Time first_byte{};             // the first byte of the answer went to the client
  Time done{};                   // so did the last one, or the client was gone
  unsigned status = 0;           // as sent to the client; 0: nothing was sent
  unsigned attempts = 0;         // hops tried, prefill and decode
  bool cut = false;              // an answer was begun and could not be ended
  bool client_gone = false;      // the client closed before its answer was whole
  std::string error;             // why it did not go as it should
};

}  // namespace moonpool::gateway
