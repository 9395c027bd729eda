<#
.SYNOPSIS
Starts WSL when you sign in to Windows, so that llmproxy is there before you ask for it.

.DESCRIPTION
Makes a scheduled task of your own; no administrator is needed. The task opens the distribution and keeps it open: WSL
ends one that nobody uses, and the containers of an engine in it with it. With -Stack it brings the launcher up as well; with
Docker Desktop that is not needed, as its restart policy does so. Run it as often as you like.

.PARAMETER Distribution
As `wsl --list` names it; without it the default one.

.PARAMETER Stack
The folder of docker-compose.yml in WSL, such as /home/me/llmproxy.

.PARAMETER Uninstall
Take the task away, and end it.

.EXAMPLE
powershell -ExecutionPolicy Bypass -File start-at-logon.ps1 -Distribution Ubuntu -Stack /home/me/llmproxy

.EXAMPLE
powershell -ExecutionPolicy Bypass -File start-at-logon.ps1 -Uninstall
#>
[CmdletBinding(SupportsShouldProcess = $true)]
param(
    [ValidatePattern('^[\w.-]*$')]
    [string]$Distribution = '',
    # It stands in a command line: letters, digits and what paths are made of.
    [ValidatePattern('^(/[\w.-]+)*/?$')]
    [string]$Stack = '',
    [switch]$Uninstall
)

Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

$task = 'llmproxy WSL'
$found = Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue

if ($Uninstall) {
    if (-not $found) {
        Write-Output "There is no task '$task'."
        exit 0
    }
    if ($PSCmdlet.ShouldProcess($task, 'Remove the scheduled task')) {
        Stop-ScheduledTask -TaskName $task
        Unregister-ScheduledTask -TaskName $task -Confirm:$false
        Write-Output "Removed: the task '$task'."
    }
    exit 0
}

$inside = 'exec sleep infinity'
if ($Stack) {
    # Docker may take a while after WSL has started.
    $up = 'docker compose --profile launcher up -d launcher'
    $inside = "cd $Stack && for try in 1 2 3 4 5 6 7 8 9 10 11 12; do $up && break; sleep 10; done; $inside"
}
$where = ''
if ($Distribution) { $where = "--distribution $Distribution " }
$command = "wsl.exe $where--exec /bin/sh -c '$inside'"
$arguments = "-NoProfile -WindowStyle Hidden -Command `"$command`""

if ($PSCmdlet.ShouldProcess($task, "Run at logon: $command")) {
    $user = [Security.Principal.WindowsIdentity]::GetCurrent().Name
    $limits = @{
        AllowStartIfOnBatteries    = $true
        DontStopIfGoingOnBatteries = $true
        # It goes on for as long as you are signed in.
        ExecutionTimeLimit         = [TimeSpan]::Zero
        RestartCount               = 3
        RestartInterval            = New-TimeSpan -Minutes 1
        MultipleInstances          = 'IgnoreNew'
    }
    $wanted = @{
        TaskName    = $task
        Description = 'Starts WSL for llmproxy: deploy/windows/start-at-logon.ps1 -Uninstall takes it away.'
        Action      = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument $arguments
        Trigger     = New-ScheduledTaskTrigger -AtLogOn -User $user
        Principal   = New-ScheduledTaskPrincipal -UserId $user -LogonType Interactive -RunLevel Limited
        Settings    = New-ScheduledTaskSettingsSet @limits
        # One that is there is replaced.
        Force       = $true
    }
    Register-ScheduledTask @wanted | Out-Null
    Write-Output "Made: the task '$task'. Start it now with: Start-ScheduledTask -TaskName '$task'"
}
