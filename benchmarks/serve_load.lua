-- wrk -s serve_load.lua URL -- BODIES KEY FIRST: posts the lines of a file in order, from line FIRST (0 the first) on,
-- and starts over at its end. The last line of the output is one JSON object.

local bodies, place = {}, 0
local headers = { ["Content-Type"] = "application/json" }

function init(args)
  for line in io.lines(args[1]) do
    bodies[#bodies + 1] = line
  end
  headers["Authorization"] = "Bearer " .. args[2]
  place = tonumber(args[3])
end

function request()
  local body = bodies[place % #bodies + 1]
  place = place + 1
  return wrk.format("POST", "/v1/search", headers, body)
end

function done(summary, latency)
  local errors = summary.errors
  local shape = '\n{"p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, "rps": %.2f, "requests": %d, "failed": %d}\n'
  io.write(string.format(shape,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    summary.requests / (summary.duration / 1e6), summary.requests,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
