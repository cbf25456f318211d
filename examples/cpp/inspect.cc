// Inspects one image file with an AuroraEdge server: inspect HOST:PORT IMAGE RECIPE [REFERENCE]
//
// It shows what a client on a line needs: a message size that lets frames through, a deadline, a request id that makes
// a repetition harmless, retries where the server asks for them, and errors with their reason.
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "auroraedge/inspection/v1/inspection.pb.h"
#include "auroraedge/inspection/v1/service.grpc.pb.h"

namespace v1 = auroraedge::inspection::v1;

namespace {

constexpr int kMaxMessageBytes = 64 << 20;  // gRPC's default of 4 MiB is less than one frame of many cameras
constexpr int kAttempts = 5;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string NewRequestId() {
  std::random_device random;
  std::ostringstream text;
  for (int i = 0; i < 4; ++i) text << std::hex << random();
  return text.str();
}

// Only what the server did not take, or says may be sent again. The request id makes it safe in any case.
bool MayRepeat(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
}

grpc::Status Inspect(v1::InspectionService::Stub& stub, const v1::InspectRequest& request,
                     v1::InspectResponse* response) {
  grpc::Status status;
  auto pause = std::chrono::milliseconds(100);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    grpc::ClientContext context;  // one a call: it cannot be used again
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    status = stub.Inspect(&context, request, response);
    if (status.ok() || !MayRepeat(status)) return status;
    std::this_thread::sleep_for(pause);
    pause *= 2;
  }
  return status;
}

const char* Name(v1::Verdict verdict) {
  switch (verdict) {
    case v1::VERDICT_OK: return "OK";
    case v1::VERDICT_NG: return "NG";
    case v1::VERDICT_REVIEW: return "REVIEW";
    default: return "ERROR";  // also what a newer server may send: never to be taken for OK
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5) {
    std::cerr << "usage: inspect HOST:PORT IMAGE RECIPE [REFERENCE]\n";
    return 2;
  }
  try {
    grpc::ChannelArguments arguments;
    arguments.SetMaxSendMessageSize(kMaxMessageBytes);
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    // Several replicas behind one name are then used in turn; with one address it changes nothing.
    arguments.SetLoadBalancingPolicyName("round_robin");
    // With TLS: grpc::SslCredentials({root_certificates, private_key, certificate_chain}).
    auto channel = grpc::CreateCustomChannel(argv[1], grpc::InsecureChannelCredentials(), arguments);
    auto stub = v1::InspectionService::NewStub(channel);

    v1::InspectRequest request;
    request.mutable_info()->set_request_id(NewRequestId());
    request.mutable_info()->set_station("cpp-example");
    request.mutable_frame()->set_encoded(ReadFile(argv[2]));
    request.set_recipe_id(argv[3]);
    if (argc == 5) request.mutable_reference()->set_encoded(ReadFile(argv[4]));
    request.set_image_name(argv[2]);

    v1::InspectResponse response;
    const grpc::Status status = Inspect(*stub, request, &response);
    if (!status.ok()) {
      std::cerr << "error " << status.error_code() << ": " << status.error_message() << "\n";
      return 1;
    }
    const v1::InspectionResult& result = response.result();
    std::cout << Name(result.verdict());
    if (result.has_ng_probability()) std::cout << " P(NG) " << result.ng_probability();
    std::cout << " model " << result.model_id() << " after " << result.timings().total_ms() << " ms\n";
    for (const v1::Defect& defect : result.defects()) {
      std::cout << "  " << defect.label() << " " << defect.confidence();
      if (defect.has_box()) {
        const v1::Box& box = defect.box();
        std::cout << " at " << box.x1() << "," << box.y1() << " - " << box.x2() << "," << box.y2();
      }
      std::cout << "\n";
    }
    return result.verdict() == v1::VERDICT_OK ? 0 : 3;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
