#include "gateway/kubernetes_instances.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <set>

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

constexpr int kGone = 410;

Status wrong(const std::string& what) { return Status(ErrorCode::kProtocol, "the API server's answer " + what); }

const json::object* object_in(const json::object& object, const char* field) {
  const auto* value = object.if_contains(field);
  return value == nullptr ? nullptr : value->if_object();
}

const json::array* array_in(const json::object& object, const char* field) {
  const auto* value = object.if_contains(field);
  return value == nullptr ? nullptr : value->if_array();
}

// Empty where there is none, or it is no string.
std::string text_in(const json::object& object, const char* field) {
  const auto* value = object.if_contains(field);
  if (value == nullptr || !value->is_string()) return {};
  return {value->get_string().data(), value->get_string().size()};
}

std::string port_text(const json::object& port) {
  const auto* number = port.if_contains("port");
  if (number == nullptr || !number->is_int64()) return {};
  return std::to_string(number->get_int64());
}

// The number of the port that is meant; empty when the slice has none of that name.
std::string port_of(const json::object& slice, const std::string& wanted) {
  if (!wanted.empty() && wanted.find_first_not_of("0123456789") == std::string::npos) return wanted;
  const auto* ports = array_in(slice, "ports");
  if (ports == nullptr) return {};
  if (wanted.empty()) return ports->size() == 1 && ports->front().is_object() ? port_text(ports->front().get_object()) : std::string();
  for (const auto& port : *ports) {
    if (port.is_object() && text_in(port.get_object(), "name") == wanted) return port_text(port.get_object());
  }
  return {};
}

// Not said means ready, as the API has it.
bool is_ready(const json::object& endpoint) {
  const auto* conditions = object_in(endpoint, "conditions");
  const auto* ready = conditions == nullptr ? nullptr : conditions->if_contains("ready");
  return ready == nullptr || !ready->is_bool() || ready->get_bool();
}

std::string first_address(const json::object& endpoint) {
  const auto* addresses = array_in(endpoint, "addresses");
  if (addresses == nullptr || addresses->empty() || !addresses->front().is_string()) return {};
  return {addresses->front().get_string().data(), addresses->front().get_string().size()};
}

}  // namespace

// One slice with its name, as an object of the API.
struct EndpointSlices::Parsed {
  std::string name;
  std::string resource_version;
  Slice endpoints;

  static Result<Parsed> of(const json::object& object, const std::string& wanted_port) {
    Parsed parsed;
    const auto* metadata = object_in(object, "metadata");
    if (metadata == nullptr) return wrong("has an object without metadata");
    parsed.name = text_in(*metadata, "name");
    parsed.resource_version = text_in(*metadata, "resourceVersion");
    const auto* endpoints = array_in(object, "endpoints");
    const std::string port = port_of(object, wanted_port);
    if (endpoints == nullptr || port.empty()) return parsed;
    const bool ipv6 = text_in(object, "addressType") == "IPv6";
    for (const auto& one : *endpoints) {
      if (!one.is_object() || !is_ready(one.get_object())) continue;
      const std::string address = first_address(one.get_object());
      auto name = InstanceName::parse((ipv6 ? "[" + address + "]" : address) + ":" + port);
      if (!name.ok()) continue;
      const auto* target = object_in(one.get_object(), "targetRef");
      parsed.endpoints.push_back({std::move(name).value(), target == nullptr ? "" : text_in(*target, "uid"), ipv6});
    }
    return parsed;
  }
};

Status EndpointSlices::replace(std::string_view list) {
  boost::system::error_code error;
  const json::value document = json::parse(json::string_view(list.data(), list.size()), error);
  if (error || !document.is_object()) return wrong("is no JSON object");
  const auto* items = array_in(document.get_object(), "items");
  const auto* metadata = object_in(document.get_object(), "metadata");
  if (text_in(document.get_object(), "kind") != "EndpointSliceList" || metadata == nullptr) return wrong("is no EndpointSliceList");
  std::map<std::string, Slice> slices;
  for (std::size_t i = 0; items != nullptr && i < items->size(); ++i) {
    if (!(*items)[i].is_object()) return wrong("has an item that is no object");
    auto parsed = Parsed::of((*items)[i].get_object(), port_);
    if (!parsed.ok()) return parsed.status();
    slices[parsed->name] = std::move(parsed->endpoints);
  }
  slices_ = std::move(slices);
  resource_version_ = text_in(*metadata, "resourceVersion");
  return Status();
}

Result<bool> EndpointSlices::apply(std::string_view event) {
  boost::system::error_code error;
  const json::value document = json::parse(json::string_view(event.data(), event.size()), error);
  if (error || !document.is_object()) return wrong("has an event that is no JSON object");
  const std::string type = text_in(document.get_object(), "type");
  const auto* object = object_in(document.get_object(), "object");
  if (object == nullptr) return wrong("has an event without an object");
  if (type == "ERROR") {
    const auto* code = object->if_contains("code");
    const bool gone = code != nullptr && code->is_int64() && code->get_int64() == kGone;
    return Status(gone ? ErrorCode::kInvalidVersion : ErrorCode::kRpcFail,
                  "the API server ended the watch: " + text_in(*object, "message"));
  }
  auto parsed = Parsed::of(*object, port_);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->resource_version.empty()) resource_version_ = parsed->resource_version;
  if (type == "BOOKMARK") return false;
  if (type == "DELETED") {
    slices_.erase(parsed->name);
  } else if (type == "ADDED" || type == "MODIFIED") {
    slices_[parsed->name] = std::move(parsed->endpoints);
  } else {
    return false;  // a kind of event that a later server may have
  }
  return true;
}

std::vector<InstanceName> EndpointSlices::names() const {
  std::set<std::string_view> with_ipv4;
  for (const auto& [slice_name, slice] : slices_) {
    for (const Endpoint& endpoint : slice) {
      if (!endpoint.ipv6 && !endpoint.target.empty()) with_ipv4.insert(endpoint.target);
    }
  }
  std::vector<InstanceName> names;
  for (const auto& [slice_name, slice] : slices_) {
    for (const Endpoint& endpoint : slice) {
      if (endpoint.ipv6 && with_ipv4.contains(endpoint.target)) continue;
      if (std::find(names.begin(), names.end(), endpoint.name) == names.end()) names.push_back(endpoint.name);
    }
  }
  return names;
}

}  // namespace moonpool::gateway
