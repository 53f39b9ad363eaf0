// Which files TLS uses on either side; PEM all of them. Threads: values.
#pragma once

#include <string>

namespace moonpool::gateway {

// Towards clients. Without a certificate they speak plain HTTP.
struct ServerTls {
  std::string certificate;  // with its chain
  std::string key;          // empty: in the certificate's file
  std::string client_ca;    // when set, a client has to show a certificate of one of these

  friend bool operator==(const ServerTls&, const ServerTls&) = default;
};

// Towards instances whose name begins with https://, or all of a group.
struct UpstreamTls {
  bool all = false;         // also those whose name says nothing
  std::string ca;           // empty: those that the system trusts
  std::string certificate;  // what we show to instances that ask, with its chain
  std::string key;          // empty: in the certificate's file
  std::string server_name;  // what every instance's certificate is for; empty: its host

  friend bool operator==(const UpstreamTls&, const UpstreamTls&) = default;
};

}  // namespace moonpool::gateway
