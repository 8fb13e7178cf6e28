// A server in small: loads the op library and a SavedModel through TensorFlow's C API, runs it
// once.
//
//   serve LIBRARY MODEL INPUT OUTPUT BATCH TIMESTEPS INPUT_DIM < input > output
//
// INPUT and OUTPUT are tensor names (operation:index), the streams raw float32 values.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tensorflow/c/c_api.h"

namespace {

TF_Status* status;

void Check(const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  std::fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  std::exit(1);
}

TF_Output Find(TF_Graph* graph, const std::string& name) {
  const size_t colon = name.find(':');
  TF_Operation* operation = TF_GraphOperationByName(graph, name.substr(0, colon).c_str());
  if (operation == nullptr) {
    std::fprintf(stderr, "no operation %s\n", name.c_str());
    std::exit(1);
  }
  return {operation, std::atoi(name.c_str() + colon + 1)};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) return 2;
  status = TF_NewStatus();
  TF_Library* library = TF_LoadLibrary(argv[1], status);
  Check("TF_LoadLibrary");
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options, nullptr, argv[2], tags, 1, graph, nullptr, status);
  Check("TF_LoadSessionFromSavedModel");

  const int64_t dims[] = {std::atoll(argv[5]), std::atoll(argv[6]), std::atoll(argv[7])};
  const size_t bytes = dims[0] * dims[1] * dims[2] * sizeof(float);
  TF_Tensor* input = TF_AllocateTensor(TF_FLOAT, dims, 3, bytes);
  if (std::fread(TF_TensorData(input), 1, bytes, stdin) != bytes) return 3;
  const TF_Output from = Find(graph, argv[3]), to = Find(graph, argv[4]);
  TF_Tensor* output = nullptr;
  TF_SessionRun(session, nullptr, &from, &input, 1, &to, &output, 1, nullptr, 0, nullptr, status);
  Check("TF_SessionRun");
  std::fwrite(TF_TensorData(output), 1, TF_TensorByteSize(output), stdout);

  TF_DeleteTensor(input);
  TF_DeleteTensor(output);
  TF_CloseSession(session, status);
  Check("TF_CloseSession");
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteLibraryHandle(library);
  TF_DeleteStatus(status);
  return 0;
}
