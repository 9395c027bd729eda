// Node's http-proxy with an agent that keeps its connections: node node_proxy.js PORT BACKEND_PORT
"use strict";

const http = require("http");
const httpProxy = require("http-proxy");

const [port, backend] = process.argv.slice(2).map(Number);
const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity, maxFreeSockets: 1024 });
const proxy = httpProxy.createProxyServer({ target: { host: "127.0.0.1", port: backend }, agent });
proxy.on("error", (error, request, response) => {
  if (response.headersSent) {
    response.destroy();
  } else {
    response.writeHead(502).end(String(error.code));
  }
});

const server = http.createServer((request, response) => proxy.web(request, response));
server.keepAliveTimeout = 120000;
server.listen({ host: "127.0.0.1", port, backlog: 4096 });
