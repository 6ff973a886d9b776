// The loop of a Lambda runtime, over one connection that is kept.

const http = require("node:http");

const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(":");
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function call(method, path, body) {
  return new Promise((resolve, reject) => {
    const options = { host, port, agent, method, path: `/2018-06-01/runtime/invocation/${path}` };
    const request = http.request(options, async (response) => {
      try {
        const chunks = await response.toArray();
        resolve({ headers: response.headers, body: Buffer.concat(chunks).toString() });
      } catch (error) {
        reject(error);
      }
    });
    request.on("error", reject);
    request.end(body);
  });
}

exports.serve = async (handler) => {
  for (;;) {
    const invocation = await call("GET", "next");
    let outcome = "response";
    let answer;
    try {
      answer = await handler(JSON.parse(invocation.body));
    } catch (error) {
      console.error(error);
      outcome = "error";
      answer = { errorType: error.name, errorMessage: error.message };
    }
    const requestId = invocation.headers["lambda-runtime-aws-request-id"];
    await call("POST", `${requestId}/${outcome}`, JSON.stringify(answer));
  }
};
