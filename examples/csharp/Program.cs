// Inspects one image file with an AuroraEdge server: dotnet run -- http://HOST:PORT IMAGE RECIPE [REFERENCE]
using Auroraedge.Inspection.V1;
using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;

if (args.Length is < 3 or > 4)
{
    Console.Error.WriteLine("usage: Inspect http://HOST:PORT IMAGE RECIPE [REFERENCE]");
    return 2;
}

const int maxMessageBytes = 64 << 20; // gRPC's default of 4 MiB is less than one frame of many cameras
var methods = new MethodConfig
{
    Names = { MethodName.Default },
    // Repeating is harmless: the server answers a request id once.
    RetryPolicy = new RetryPolicy
    {
        MaxAttempts = 5,
        InitialBackoff = TimeSpan.FromMilliseconds(100),
        MaxBackoff = TimeSpan.FromSeconds(5),
        BackoffMultiplier = 2,
        RetryableStatusCodes = { StatusCode.Unavailable, StatusCode.ResourceExhausted },
    },
};
using var channel = GrpcChannel.ForAddress(args[0], new GrpcChannelOptions
{
    MaxSendMessageSize = maxMessageBytes,
    MaxReceiveMessageSize = maxMessageBytes,
    MaxRetryBufferSize = 2L * maxMessageBytes,
    MaxRetryBufferPerCallSize = maxMessageBytes, // a larger request would not be repeated
    ServiceConfig = new ServiceConfig { MethodConfigs = { methods } },
});
var client = new InspectionService.InspectionServiceClient(channel);

var request = new InspectRequest
{
    Info = new RequestInfo { RequestId = Guid.NewGuid().ToString("N"), Station = "csharp-example" },
    Frame = new Frame { Encoded = ByteString.CopyFrom(File.ReadAllBytes(args[1])) },
    RecipeId = args[2],
    ImageName = Path.GetFileName(args[1]),
};
if (args.Length == 4)
{
    request.Reference = new Frame { Encoded = ByteString.CopyFrom(File.ReadAllBytes(args[3])) };
}

try
{
    var response = await client.InspectAsync(request, deadline: DateTime.UtcNow.AddSeconds(30));
    var result = response.Result;
    var probability = result.HasNgProbability ? $" P(NG) {result.NgProbability:0.000}" : "";
    Console.WriteLine($"{result.Verdict}{probability} model {result.ModelId} after {result.Timings.TotalMs:0} ms");
    foreach (var defect in result.Defects)
    {
        var box = defect.Box is null ? "" : $" at {defect.Box.X1},{defect.Box.Y1} - {defect.Box.X2},{defect.Box.Y2}";
        Console.WriteLine($"  {defect.Label} {defect.Confidence:0.00}{box}");
    }
    return result.Verdict == Verdict.Ok ? 0 : 3;
}
catch (RpcException error)
{
    // The google.rpc.Status with reason, field and remedy: error.GetRpcStatus() of the package Grpc.StatusProto.
    Console.Error.WriteLine($"error {error.StatusCode}: {error.Status.Detail}");
    return 1;
}
