-- A client of fluxd with Neovim's own Lua: open a tunnel, look at it, hear what happens, close it.
--   nvim --headless -u NONE -c "luafile client.lua"     with the project's hash in FLUX_HASH
local env, uv = vim.env, vim.loop
local runtime = env.XDG_RUNTIME_DIR or ("/run/user/" .. uv.getuid())
local socket = env.FLUXD_SOCKET or (runtime .. "/fluxd/fluxd.sock")

-- What fluxd answers, up to its end or, with `first`, the first line of the body. HTTP/1.0: no chunks, no keep-alive.
local function ask(method, path, body, first)
  local sent, got, done, failed = body and vim.json.encode(body) or "", "", false, nil
  local pipe = uv.new_pipe(false)
  pipe:connect(socket, function(refused)
    if refused then failed, done = refused, true return end
    pipe:write(table.concat({
      method .. " " .. path .. " HTTP/1.0", "Host: localhost", "Flux-Api-Version: 1",
      "Content-Type: application/json", "Content-Length: " .. #sent, "", sent,
    }, "\r\n"))
    pipe:read_start(function(broken, data)
      got = got .. (data or "")
      failed = broken
      done = broken ~= nil or data == nil or (first and got:match("\r\n\r\n[^\n]+\n") ~= nil)
    end)
  end)
  vim.wait(60000, function() return done end, 10)
  pipe:close()
  assert(done and not failed, failed or "fluxd did not answer")
  local status, text = tonumber(got:match("^HTTP/%S+ (%d+)")), got:match("\r\n\r\n(.*)$")
  local answer = vim.json.decode(first and text:match("[^\n]+") or text)
  -- A refusal is application/problem+json with code, message and hint.
  assert(status < 400, (answer.code or "") .. ": " .. (answer.message or ""))
  return answer
end

local function main()
  local plane = { api_base = env.FLUX_API_BASE, token = env.FLUX_API_TOKEN }
  local ssh = { host = env.FLUX_DB_TUNNEL_SSH_HOST, user = env.FLUX_DB_TUNNEL_SSH_USER,
    port = tonumber(env.FLUX_DB_TUNNEL_SSH_PORT), identity_file = env.FLUX_DB_TUNNEL_IDENTITY_FILE,
    known_hosts = env.FLUX_DB_TUNNEL_KNOWN_HOSTS }
  local id = ask("POST", "/v1/tunnels", { hash = env.FLUX_HASH, plane = plane, ssh = ssh }).tunnel.id
  print(id .. " is open\n" .. ask("GET", "/v1/tunnels/" .. id).tunnel.port)
  print("\n" .. ask("GET", "/v1/events?tunnel=" .. id, nil, true).name)
  ask("DELETE", "/v1/tunnels/" .. id)
  print("\n" .. id .. " is closed\n")
end

local good, problem = pcall(main)
if not good then io.stderr:write(problem .. "\n") end
vim.cmd(good and "quitall!" or "cquit!")
