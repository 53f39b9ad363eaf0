#include "gateway/access.h"

namespace moonpool::gateway {

namespace {

constexpr std::string_view kChallenge = "WWW-Authenticate: Bearer realm=\"moonpool\"\r\n";

Access refuse(unsigned status, std::string_view message, std::string_view code) {
  Access access;
  access.refusal = Reply{status, openai_error(status, message, code)};
  if (status == 401) access.refusal->fields = kChallenge;
  return access;
}

std::string_view either(std::string_view first, std::string_view second) { return first.empty() ? second : first; }

std::string_view api_key_field(const RequestParser& request) { return request.headers.get("x-api-key"); }

}  // namespace

std::string_view bearer_token(const HeaderFields& headers) {
  constexpr std::string_view kScheme = "bearer ";
  std::string_view value = headers.get(http::field::authorization);
  if (value.size() < kScheme.size() || !equals_ignoring_case(value.substr(0, kScheme.size()), kScheme)) return {};
  value.remove_prefix(kScheme.size());
  value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
  return value;
}

Access client_access(const GatewayState& state, const RequestParser& request) {
  const KeyRing& keys = state.settings().keys;
  if (!keys.has(KeyRole::kClient)) return {};
  const std::string_view given = either(bearer_token(request.headers), api_key_field(request));
  if (given.empty()) {
    return refuse(401, "this gateway wants an API key: send Authorization: Bearer KEY (in OpenAI's clients, api_key)", "invalid_api_key");
  }
  const ApiKey* key = keys.find(given);
  if (key == nullptr) {
    return refuse(401, "this API key is not known here, or not any more: ask the gateway's administrator for one", "invalid_api_key");
  }
  if (key->role != KeyRole::kClient) return refuse(403, "this key is not a client's: it opens no completions", "wrong_key_role");
  return {key, std::nullopt};
}

Access status_access(const GatewayState& state, const RequestParser& request) {
  if (!state.settings().protect_status) return {};
  const KeyRing& keys = state.settings().keys;
  const std::string_view given = either(bearer_token(request.headers), api_key_field(request));
  const ApiKey* key = keys.find(given);
  if (key == nullptr) {
    return refuse(401, "this endpoint wants a key of role monitor or admin in Authorization: Bearer KEY; /health and /ready want none",
                  "invalid_api_key");
  }
  if (key->role == KeyRole::kClient) return refuse(403, "this key is a client's: it does not open this endpoint", "wrong_key_role");
  return {key, std::nullopt};
}

Access admin_access(const GatewayState& state, const RequestParser& request) {
  const KeyRing& keys = state.settings().keys;
  if (!keys.has(KeyRole::kAdmin)) {
    return refuse(403,
                  "administration is disabled: start the gateway with ADMIN_API_KEY set in its environment, or with a key of role admin in "
                  "its configuration, and send the same key in X-API-Key",
                  "administration_disabled");
  }
  const std::string_view given = either(api_key_field(request), bearer_token(request.headers));
  if (given.empty()) {
    return refuse(
        401,
        "the header X-API-Key (or Authorization: Bearer) is missing: it has to carry the key that the gateway was started with in "
        "ADMIN_API_KEY, or another one of role admin",
        "invalid_api_key");
  }
  const ApiKey* key = keys.find(given);
  if (key == nullptr) return refuse(403, "the key is neither the one of ADMIN_API_KEY nor another one of role admin", "invalid_api_key");
  if (key->role != KeyRole::kAdmin) return refuse(403, "this key is not an administrator's", "wrong_key_role");
  return {key, std::nullopt};
}

}  // namespace moonpool::gateway
