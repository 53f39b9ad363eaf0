// An HTTP message given to one of the gateway's parsers in pieces, as a socket may bring it.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>

#include "gateway/http_message.h"

namespace moonpool::gateway::fuzz {

enum class Outcome { kWhole, kIncomplete, kRefused };

// Pieces of `step` bytes; `used` are those of a whole message.
template <typename Parser>
Outcome parse(Parser& parser, std::string_view bytes, std::size_t step, std::size_t& used) {
  std::string held;
  std::size_t taken = 0;
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    held += bytes.substr(at, step);
    while (!held.empty()) {
      boost::system::error_code error;
      const std::size_t count = parser.put(boost::asio::buffer(held), error);
      held.erase(0, count);
      taken += count;
      if (error == http::error::need_more) break;
      if (error) return Outcome::kRefused;
      if (parser.is_done()) {
        used = taken;
        return Outcome::kWhole;
      }
      if (count == 0) break;
    }
  }
  return Outcome::kIncomplete;
}

inline void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace moonpool::gateway::fuzz
